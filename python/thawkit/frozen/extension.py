"""Layers with trainable parameters of thawkit's own beside the frozen ones they came with.

:mod:`thawkit.frozen.lora` and :mod:`thawkit.frozen.channels` derive from :class:`Extended`. This module holds
what they share: which layers can be extended, how the extras come and go, and the geometry of convolutions.
"""

from __future__ import annotations

import fnmatch
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from thawkit.errors import ThawkitError
from thawkit.frozen.layers import Rewritten, recording
from thawkit.frozen.structure import head_parts, is_weight_layer, within

_FAST_PATH = "_thawkit_fast_path"  # on torch's encoders: the attribute that was changed, and its value
_stock_form = False


class Extended(Rewritten):
    """Base of the layers with parameters of their own.

    ``extras`` names those parameters, which :func:`thawkit.unfreeze` takes away again.
    """

    extras: ClassVar[tuple[str, ...]]

    def keeps_input(self) -> bool:
        """Whether the layer saves the storage of its input for the backward pass."""
        raise NotImplementedError

    def detach(self, merge: bool) -> None:
        """Become the stock layer again, holding what was learnt if ``merge``."""
        raise NotImplementedError


def extended(x: Tensor) -> bool:
    """Whether the layers may act by a Function of their own on ``x``; else torch's own operators do it."""
    return recording(x) and not _stock_form


@contextmanager
def in_stock_form() -> Iterator[None]:
    """Let extended layers compute by torch's own operators, so that what those save can be measured."""
    global _stock_form
    _stock_form = True
    try:
        yield
    finally:
        _stock_form = False


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had before it was rewritten."""
    return module.stock if isinstance(module, Rewritten) else type(module)


def extra_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that are thawkit's and not the model's."""
    return {
        f"{name}.{extra}" if name else extra
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Extended)
        for extra in module.extras
    }


def is_linear_of_huggingface(kind: type[nn.Module]) -> bool:
    """Whether a class is 🤗's ``Conv1D``, a linear layer whose weight is (in, out)."""
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and kind is transformers.Conv1D


def extendable(model: nn.Module, pattern: str, policy: str) -> dict[str, nn.Module]:
    """The linear and convolutional layers outside the head that can be extended, by name.

    Left out are subclasses, which may compute something else, layers whose weight is computed
    (parametrizations), is no floating-point tensor, or serves elsewhere as well (tied), and the output
    projection of ``nn.MultiheadAttention``, which multiplies by the weight itself.

    Args:
        model: may be frozen.
        pattern: a glob on module names.
        policy: the policy in words, for the error.

    Raises:
        ThawkitError: no layer is left.
    """
    head = head_parts(model)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        kind = stock_class(module)
        linear = kind is nn.Linear or is_linear_of_huggingface(kind)
        if (
            (linear or kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            and weight is not None
            and weight.is_floating_point()
            and uses[id(weight)] == 1
            and "forward" not in vars(module)
            and not within(name, head)
        ):
            found[name] = module
    chosen = {name: module for name, module in found.items() if fnmatch.fnmatchcase(name, pattern)}
    if not chosen:
        listing = f"{len(found)} layers, {next(iter(found))} to {list(found)[-1]}" if found else "none"
        raise ThawkitError(
            f"train: {policy!r} needs linear or convolutional layers outside the head with names like "
            f"{pattern!r}; {type(model).__name__} has {listing}"
        )
    return chosen


def passed_over(model: nn.Module, chosen: set[str], pattern: str) -> list[str]:
    """Names of the weight layers outside the head that match ``pattern`` and are not among the ``chosen``."""
    head = head_parts(model)
    return [
        name
        for name, module in model.named_modules()
        if (is_weight_layer(module) or isinstance(module, nn.MultiheadAttention))
        and not isinstance(module, NonDynamicallyQuantizableLinear)  # goes with its nn.MultiheadAttention
        and name not in chosen
        and fnmatch.fnmatchcase(name, pattern)
        and not within(name, head)
    ]


def add_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Register ``value`` as a trainable parameter ``name``, a name that must be free.

    Raises:
        ThawkitError: the module has something of that name.
    """
    if hasattr(module, name):
        raise ThawkitError(f"model: a layer has a {name!r} of its own, which thawkit would overwrite")
    module.register_parameter(name, nn.Parameter(value))


def leave_fast_paths(model: nn.Module) -> None:
    """Keep torch's transformer encoders that hold extended layers from reading those layers' weights.

    In evaluation mode without gradients they would run as one operator on ``linear1.weight`` and so on.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            name, off = "activation_relu_or_gelu", 0
        elif isinstance(module, nn.TransformerEncoder):
            name, off = "use_nested_tensor", False
        else:
            continue
        if any(isinstance(below, Extended) for below in module.modules()):
            setattr(module, _FAST_PATH, (name, getattr(module, name)))
            setattr(module, name, off)


def restore_fast_path(module: nn.Module) -> None:
    """Undo :func:`leave_fast_paths` for one module."""
    if _FAST_PATH in vars(module):
        setattr(module, *vars(module).pop(_FAST_PATH))
