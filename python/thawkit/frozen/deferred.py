"""Tensors that stand for a result not yet computed, so that the next layer may compute both at once.

A rewritten convolution does not know whether a normalization, a sum and an activation follow. It returns a
:class:`Deferred` instead of a value; a layer that can join takes it and returns another one, or the value of
all together. Whatever else touches it, a function of torch, a hook, a print, gets the plain value: the layers
before are then computed as stock modules would. So what runs is decided by what really happens in a forward,
not by an analysis of the model, and a model that surprises loses speed and never exactness.

Gradients follow however the tensor is used: it hangs in the graph by :class:`_Anchor`, so that a custom
``autograd.Function``, which torch lets see the stand-in itself, passes its gradient on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from thawkit.errors import ThawkitError
from thawkit.ops.frozen.packed import version_of


class Pending(Protocol):
    """What a :class:`Deferred` stands for.

    Attributes:
        shape, like: shape of the result, and a tensor of its dtype and device.
        inputs: the tensors that the result depends on; those that need a gradient get it.
    """

    shape: tuple[int, ...]
    like: Tensor
    inputs: tuple[Tensor, ...]

    def compute(self) -> Tensor:
        """Compute the result."""

    def add(self, other: Tensor) -> Pending | None:
        """What stands for the sum with ``other`` of the same shape and dtype; None if it cannot join."""

    def clamp(self, lower: float, upper: float, keep: bool) -> Tensor | None:
        """Compute the clamped result in one go (NaN passes); None if it cannot join.

        With ``keep``, which says that someone else will save the result, it is saved and not its bits.
        """


class Deferred(Tensor):
    """A tensor whose value is computed when it is needed."""

    pending: Pending | None
    known: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        joined = _join(func, args, kwargs)
        if joined is not None:
            return joined
        if func in FUNCTIONS and args and isinstance(args[0], Deferred) and not torch.compiler.is_compiling():
            return FUNCTIONS[func](*args, **(kwargs or {}))
        stand_ins = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Deferred)]
        versions = [version_of(plain(x)) for x in stand_ins]
        args, kwargs = tree_map_only(Deferred, plain, (args, kwargs or {}))
        result = func(*args, **kwargs)
        for x, version in zip(stand_ins, versions, strict=True):
            if version_of(plain(x)) != version:
                _settle(x, plain(x))
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has a static one
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Deferred, plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def defer(pending: Pending) -> Deferred:
    """Make the tensor that stands for ``pending``."""
    return _Anchor.apply(pending, None, *pending.inputs)


def plain(x: Tensor) -> Tensor:
    """Return the value of ``x``, which may be a :class:`Deferred`."""
    if not isinstance(x, Deferred):
        return x
    if x.known is None:
        assert x.pending is not None
        x.known, x.pending = x.pending.compute(), None
    return x.known


def pending_of(x: Tensor) -> Pending | None:
    """What ``x`` stands for; None if its value is known."""
    return x.pending if isinstance(x, Deferred) else None


def clamped(x: Deferred, lower: float, upper: float, inplace: bool, keep: bool) -> Tensor | None:
    """``clamp(x)`` computed with what ``x`` stands for; None if it does not join.

    Args:
        x: left as it is, or, ``inplace``, made to stand for the result.
        lower, upper: bounds.
        inplace: the layer was asked to overwrite ``x``.
        keep: the layer after it saves the result.
    """
    result = x.pending.clamp(lower, upper, keep) if x.pending is not None else None
    if result is not None and inplace:
        _settle(x, result)
    return result


def _settle(x: Deferred, value: Tensor) -> None:
    """Let ``x`` stand for ``value``, also in the graph."""
    _Anchor.apply(_Known(value), x, value)
    x.pending, x.known = None, value


class _Known:
    def __init__(self, value: Tensor) -> None:
        self.shape, self.like, self.inputs = value.shape, value, (value,)

    def compute(self) -> Tensor:
        return self.like

    def add(self, other: Tensor) -> None:
        return None

    def clamp(self, lower: float, upper: float, keep: bool) -> None:
        return None


class Input:
    """An input that must not change until it is used."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._version = x, version_of(x)

    def get(self) -> Tensor:
        """Return the input.

        Raises:
            ThawkitError: it was written to in the meantime.
        """
        if version_of(self._x) != self._version:
            raise ThawkitError(
                "model: writes to a tensor after a frozen convolution or normalization has taken it and "
                "before the layer after that, which run as one; let it write to a copy, y = y + z for y += z"
            )
        return self._x


def _join(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor | None:
    """The sum of a deferred tensor and another one where that can be deferred, too."""
    if func not in _SUMS or kwargs or len(args) != 2:
        return None
    a, b = args
    inplace = func is Tensor.add_
    if isinstance(b, Deferred) and b.pending is not None and not inplace and not isinstance(a, Deferred):
        a, b = b, a
    if not isinstance(a, Deferred) or a.pending is None or not isinstance(b, Tensor) or a is b:
        return None
    other = plain(b)
    if other.shape != a.shape or other.dtype != a.dtype or other.device != a.device:
        return None
    pending = a.pending.add(other)
    if pending is None:
        return None
    return _Anchor.apply(pending, a if inplace else None, *pending.inputs)


class _Anchor(torch.autograd.Function):
    """Ties a deferred tensor to the graph, for those who take it without asking for its value."""

    @staticmethod
    def forward(ctx: Any, pending: Pending, stand_in: Deferred | None, *inputs: Tensor) -> Deferred:
        ctx.pending = pending
        if stand_in is None:
            like = pending.like
            stand_in = Tensor._make_wrapper_subclass(
                Deferred, pending.shape, dtype=like.dtype, device=like.device
            )
        else:
            ctx.mark_dirty(stand_in)
        stand_in.pending, stand_in.known = pending, None
        return stand_in

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            value = ctx.pending.compute()
        needed = [x for x in ctx.pending.inputs if x.requires_grad]
        found = iter(torch.autograd.grad(value, needed, grad, create_graph=torch.is_grad_enabled()))
        return None, None, *(next(found) if x.requires_grad else None for x in ctx.pending.inputs)


# What stands in for a function of torch whose first argument is a tensor: see functional.py, which fills it.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
_SUMS = {torch.add, Tensor.add, Tensor.add_}
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_meta", "layout")
    ),
}
