"""Where a model's head and its blocks are, told from its modules alone (nothing is run).

Works on torchvision and timm classifiers, 🤗 transformers ``...ForXClassification`` models, and plain
``nn.Module``/``nn.Sequential`` networks. "Before" and "after" mean registration order, which is the
order of ``named_modules()`` and, in all of those, the order of execution.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from thawkit.errors import ThawkitError

_HEAD_NAMES = ("fc", "head", "heads", "classifier", "last_linear", "score", "logits")
_AUXILIARY = re.compile(r"aux", re.IGNORECASE)
_NORM_NAME = re.compile(r"(?<!conv)norm(act|tlu)?(\dd)?(fp32)?(act|nobias)?$|^evonorm", re.IGNORECASE)
_LIKE_A_NORM = re.compile(r"norm\d*|bn\d*|ln_?\d*", re.IGNORECASE)  # names that normalizations are given
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_head(module: nn.Module) -> tuple[str, nn.Module]:
    """Find the layer that turns features into logits.

    Args:
        module: a classifier.

    Returns:
        The dotted name and the module of the last linear layer (or convolution, in fully convolutional
        classifiers) of the head, e.g. ``("fc", Linear(512, 1000))`` for a ResNet. Its input is what is
        usually meant by "the features".

    Raises:
        ThawkitError: if the model has no such layer, as when it was built without a classifier.
    """
    for part in reversed(head_parts(module)):
        layers = [(name, layer) for name, layer in _named(module, part) if is_weight_layer(layer)]
        if layers:
            return layers[-1]
    children = ", ".join(name for name, _ in module.named_children()) or "none"
    raise ThawkitError(
        f"model: expected a classifier with a linear (or convolutional) head, but {type(module).__name__} "
        f"has none (its children: {children})"
    )


def head_parts(module: nn.Module) -> list[str]:
    """Name the modules that the policy ``head`` trains, in registration order.

    Usually one, the layer of :func:`find_head`. More where a model says so itself: everything outside the
    pretrained base of a 🤗 model (its classifier may have several layers, all of them fresh), and both
    classifiers of a distilled timm model. Of a child with several weight layers that takes the head's place,
    ``model.fc = nn.Sequential(...)``, all of it is new. Only a ``classifier`` may have come with pretrained
    layers before the last, as VGG's; none comes with batch normalizations. Empty if the model has no head.
    """
    for find in (_huggingface_head, _timm_head):
        parts = find(module)
        if parts is not None:
            return parts
    named = [name for name, _ in module.named_children() if name in _HEAD_NAMES]
    region = named[-1] if named else ""
    last = [name for name, layer in _named(module, region) if is_weight_layer(layer)][-1:]
    child = _mlp_of(module, last[0]) if last else None
    if child is not None:
        below = module.get_submodule(child).modules()
        named_so = child == region and child != "classifier"
        if named_so or any(isinstance(layer, _BatchNorm) for layer in below):
            return [child]
    return last


def beside_head(module: nn.Module) -> list[str]:
    """Name the layers before the head's last one in the same child that are no part of the head."""
    parts = head_parts(module)
    child = _mlp_of(module, parts[-1]) if parts else None
    if child is None:
        return []
    return [
        name for name, layer in _named(module, child) if is_weight_layer(layer) and not within(name, parts)
    ]


def find_blocks(module: nn.Module) -> list[str]:
    """Name the blocks that ``last:K`` counts, first to last.

    A block is the unit that the network repeats: a residual block, a transformer layer, a dense layer, an
    inception module. A network without any (VGG, LeNet, an ``nn.Sequential`` of convolutions) counts its
    convolutions and linear layers instead, the head's excepted.
    """
    head = set(head_parts(module))
    found: list[tuple[str, nn.Module, bool]] = []
    _collect(module, "", head, found, False)
    kinds = Counter(type(block) for _, block, _ in found)
    blocks = [name for name, block, listed in found if listed or kinds[type(block)] > 1]
    return blocks or [
        name for name, layer in module.named_modules() if is_weight_layer(layer) and not within(name, head)
    ]


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix: a convolution, a linear layer, or what works like one."""
    weight = module._parameters.get("weight")
    like_linear = weight is not None and weight.dim() > 1
    return isinstance(module, (nn.Linear, _ConvNd)) or (
        like_linear and not is_norm_layer(module) and not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    )


def is_norm_layer(module: nn.Module) -> bool:
    """Whether a module is a normalization layer of torch, or is called one (``LlamaRMSNorm``)."""
    return isinstance(module, _NORMS) or bool(_NORM_NAME.search(type(module).__name__))


def is_like_norm(name: str, module: nn.Module) -> bool:
    """Whether a module with parameters, called ``name``, seems to normalize and is not known to."""
    if is_norm_layer(module) or is_weight_layer(module) or next(module.parameters(False), None) is None:
        return False
    named = _LIKE_A_NORM.fullmatch(name.rpartition(".")[2])
    return bool(named) or "norm" in type(module).__name__.lower()


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no submodules."""
    return next(module.children(), None) is None


def within(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is, or lies under, one of the dotted ``prefixes``."""
    return any(not prefix or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _named(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    return list(module.get_submodule(prefix).named_modules(prefix=prefix))


def _huggingface_head(module: nn.Module) -> list[str] | None:
    """Children outside the base, which every 🤗 PreTrainedModel names by ``base_model_prefix``."""
    prefix = getattr(module, "base_model_prefix", None)
    children = dict(module.named_children())
    if not prefix or children.pop(prefix, None) is None or not children:
        return None
    return [name for name, child in children.items() if _has_parameters(child)]


def _timm_head(module: nn.Module) -> list[str] | None:
    """What timm's ``get_classifier()`` returns: a module, or (class head, distillation head).

    The class head comes last here, since the last part is the one that :func:`find_head` names.
    """
    get_classifier = getattr(module, "get_classifier", None)
    if not callable(get_classifier):
        return None
    heads = get_classifier()
    heads = reversed(heads) if isinstance(heads, (tuple, list)) else (heads,)
    names = {id(child): name for name, child in module.named_modules()}
    return [names[id(head)] for head in heads if id(head) in names and _has_parameters(head)]


def _mlp_of(module: nn.Module, last: str) -> str | None:
    """The child that holds the layer ``last``, if it is a network of linear layers after other layers."""
    child = last.partition(".")[0]
    layers = [layer for _, layer in _named(module, child) if is_weight_layer(layer)]
    before = sum(
        is_weight_layer(x)
        for name, other in module.named_children()
        for x in other.modules()
        if name != child
    )
    several = len(layers) > 1 or any(isinstance(x, _BatchNorm) for x in module.get_submodule(child).modules())
    # what is long, and most of the model, is no head, unless it is called one
    smaller = before >= len(layers) or (before and (len(layers) <= 3 or child in _HEAD_NAMES))
    return child if smaller and several and all(isinstance(x, nn.Linear) for x in layers) else None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_unit(module: nn.Module) -> bool:
    """A module with its own ``forward`` around two or more weight layers: a block, or a stage of blocks."""
    if isinstance(module, _CONTAINERS) or is_weight_layer(module):
        return False
    return sum(is_weight_layer(below) for below in module.modules()) > 1


def _holds_units(module: nn.Module) -> bool:
    """Whether something in ``module`` lists units, which makes the module a stage and not a block.

    A container does if at least half of what it lists are units ("half", because an inverted residual block
    lists one squeeze-and-excitation unit among its layers). Another module does if at least half of its
    children are units of one class, as in timm's RegNet stages.
    """
    for parent in module.modules():
        children = list(parent.children())
        units = Counter(type(child) for child in children if _is_unit(child))
        count = sum(units.values()) if isinstance(parent, _CONTAINERS) else max(units.values(), default=0)
        if 2 * count >= len(children) and count > (not isinstance(parent, _CONTAINERS)):
            return True
    return False


def _collect(
    module: nn.Module, name: str, head: set[str], found: list[tuple[str, nn.Module, bool]], listed: bool
) -> None:
    """Append ``(name, block, whether a container lists it)`` for each outermost block under ``module``."""
    if name in head:
        return
    is_container = isinstance(module, _CONTAINERS)
    holds_head = any(within(part, [name]) for part in head)
    if not name or holds_head or is_container or _holds_units(module):
        for child_name, child in module.named_children():
            if not _AUXILIARY.match(child_name):
                _collect(child, f"{name}.{child_name}" if name else child_name, head, found, is_container)
    elif _is_unit(module):
        found.append((name, module, listed))
