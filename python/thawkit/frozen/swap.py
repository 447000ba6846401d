"""Which modules of a model get which class, and back."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from thawkit.frozen import (
    activation_layers,
    lossy_layers,
    pool_layers,
    transformer_layers,
    transposed_layers,
)
from thawkit.frozen.extension import Extended
from thawkit.frozen.layers import CLASSES, FrozenBatchNorm, FrozenConv2d, Rewritten
from thawkit.frozen.structure import is_leaf, is_norm_layer, is_weight_layer


def swap(model: nn.Module, fixed: set[nn.Module], act_bits: int | None, exact: bool) -> set[str]:
    """Swap the classes of the modules that then save less or keep their statistics; return their names."""
    classes, always = frozen_classes(), _decided_at_each_forward()
    lossy, lossy_fixed = ({}, {}) if act_bits is None else _lossy_classes()
    rewritten = set()
    leaves = [
        (name, m)
        for name, m in model.named_modules()
        if is_leaf(m) or m in fixed or type(m) in classes or type(m) in lossy
    ]
    # What the first weight multiplies is the model's input, which is there anyway.
    stem = next((m for _, m in leaves if next(m.parameters(), None) is not None), None)
    for index, (name, module) in enumerate(leaves):
        kept = False
        new = classes.get(type(module))
        rounds = (lossy_fixed if module in fixed else lossy).get(type(module))
        if "forward" in vars(module) or (new is None and rounds is None):
            continue
        if rounds is not None and not (module is stem and is_weight_layer(stem)):
            new, worthwhile = rounds, True
            setattr(module, lossy_layers.BITS, act_bits)
        elif new is None:
            continue
        elif isinstance(module, _ConvNd):
            worthwhile = module.weight.is_floating_point() and not module.weight.requires_grad
        elif isinstance(module, _BatchNorm):
            worthwhile = module in fixed
        elif type(module) in pool_layers.CLASSES:
            worthwhile = pool_layers.saves_less(module)
        elif isinstance(module, nn.Dropout) or type(module) in always:
            worthwhile = True
        else:
            kept = _saves_result(module) and _keeps_input((after for _, after in leaves[index + 1 :]), lossy)
            # one that saves its result can still be computed with what comes before it
            worthwhile = not kept or hasattr(new, "kept")
        if worthwhile:
            module.__class__ = new
            if hasattr(new, "kept") and kept:
                module.kept = True
                continue
            rewritten.add(name)
            if isinstance(module, FrozenBatchNorm):
                module.thawed_training, module.training = module.training, False
            if isinstance(module, FrozenConv2d):
                following = leaves[index + 1][1] if index + 1 < len(leaves) else None
                module.folds = following in fixed and following.num_features == module.out_channels
                module.exact = exact
    return rewritten


def thawed_class(kind: type) -> type:
    """The stock form of a class; one derived meanwhile, as by a parametrization, keeps what it adds."""
    if "stock" in vars(kind):
        return vars(kind)["stock"]
    if not issubclass(kind, Rewritten):
        return kind
    return type(kind.__name__, tuple(thawed_class(base) for base in kind.__bases__), dict(vars(kind)))


def frozen_classes() -> dict[type[nn.Module], type[Rewritten]]:
    """The rewritten form of each stock class; those of a library are there once something has imported it."""
    classes = CLASSES | transposed_layers.CLASSES | activation_layers.CLASSES | pool_layers.CLASSES
    classes |= _decided_at_each_forward()
    if "timm.layers" in sys.modules:
        from thawkit.frozen import timm_layers

        classes |= timm_layers.CLASSES
    return classes


def _decided_at_each_forward() -> dict[type[nn.Module], type[Rewritten]]:
    """The classes that are worth their rewriting whatever trains."""
    classes = transformer_layers.CLASSES
    if "transformers.pytorch_utils" in sys.modules:
        from thawkit.frozen import huggingface_layers

        classes = classes | huggingface_layers.CLASSES
    if "timm.layers" in sys.modules:
        from thawkit.frozen import timm_layers

        classes = classes | timm_layers.RECOMPUTABLE
    return classes


def _lossy_classes() -> tuple[dict[type[nn.Module], type[Rewritten]], dict[type[nn.Module], type[Rewritten]]]:
    """The lossy form of each stock class, and of the batch normalizations with fixed statistics."""
    lossy: dict[type[nn.Module], type[Rewritten]] = {**lossy_layers.CLASSES}
    fixed: dict[type[nn.Module], type[Rewritten]] = {**lossy_layers.FIXED}
    if "timm.layers" in sys.modules:
        from thawkit.frozen import timm_layers

        lossy |= timm_layers.LOSSY
        fixed |= timm_layers.FIXED
    return lossy, fixed


def _saves_result(module: nn.Module) -> bool:
    """Whether the stock form of an activation saves its result; a ReLU6 keeps its input, in place a copy."""
    return isinstance(module, nn.ReLU) or (
        isinstance(module, (nn.LeakyReLU, nn.RReLU, nn.Threshold)) and module.inplace
    )


def _keeps_input(following: Iterable[nn.Module], rounding: Container[type[nn.Module]] = ()) -> bool:
    """Whether the first of the layers after an activation saves its input, which is that activation's output.

    Then the stock activation, which saves the same storage, costs nothing, and a mask would be extra. Told
    from registration order; where that misleads, a few bytes are lost and nothing else.
    """
    layer = next((m for m in following if not isinstance(m, (nn.Identity, nn.Flatten))), None)
    if type(layer) in rounding:
        return False
    if isinstance(layer, Extended):
        return layer.keeps_input()
    if isinstance(layer, _BatchNorm) or (layer is not None and is_weight_layer(layer)):
        return isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
    if layer is None or pool_layers.saves_less(layer):
        return False
    return is_norm_layer(layer) or pool_layers.saves_input(layer)
