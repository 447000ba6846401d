"""Tensors that stand for a result not yet computed, so that the next layer may compute both at once.

A rewritten convolution does not know whether a normalization, a sum and an activation follow. It returns a
:class:`Deferred` instead of a value; a layer that can join takes it and returns another one, or the value of
all together. Whatever else touches it, a function of torch, a hook, a print, gets the plain value: the layers
before are then computed as stock modules would. So what runs is decided by what really happens in a forward,
not by an analysis of the model, and a model that surprises loses speed and never exactness.

Gradients follow however the tensor is used: it hangs in the graph by :class:`_Anchor`, so that a custom
``autograd.Function``, which torch lets see the stand-in itself, passes its gradient on. Whether the result
has a gradient is settled where the layer is called: it is computed in the modes of that place
(:class:`_Modes`), and a layer that runs in others does not join.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map_only

from thawkit.errors import ThawkitError
from thawkit.frozen.saved_hooks import hooks_in_force, without_hooks_since
from thawkit.ops.frozen.packed import sample, version_of


class Pending(Protocol):
    """What a :class:`Deferred` stands for.

    Attributes:
        shape, like: shape of the result, and a tensor of its dtype and device.
        inputs: the tensors that the result depends on; those that need a gradient get it.
        norm: the normalization in it, if there is one.
        conv: the convolution in it, if there is one.
    """

    shape: tuple[int, ...]
    like: Tensor
    inputs: tuple[Tensor, ...]
    norm: Any
    conv: Any

    def compute(self) -> Tensor:
        """Compute the result."""

    def add(self, other: Tensor) -> Pending | None:
        """What stands for the sum with ``other`` of the same shape and dtype; None if it cannot join."""

    def clamp(self, lower: float, upper: float, keep: bool) -> Tensor | None:
        """Compute the clamped result in one go (NaN passes); None if it cannot join.

        With ``keep``, which says that someone else will save the result, it is saved and not its bits.
        """


class _Modes(NamedTuple):
    """What decides how torch computes, and differs from place to place in a program."""

    gradients: bool
    inference: bool
    autocast: bool
    hooks: tuple[Any, ...]  # on what is saved: checkpoints count what is saved inside them

    @classmethod
    def here(cls) -> _Modes:
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            hooks_in_force(),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        with (
            torch.inference_mode(self.inference),
            torch.set_grad_enabled(self.gradients),
            torch.autocast("cpu", enabled=self.autocast),
            without_hooks_since(self.hooks),
        ):
            yield


class Deferred(Tensor):
    """A tensor whose value is computed when it is needed."""

    pending: Pending | None
    known: Tensor | None
    version: int  # of what is known, when the graph was last told of it
    modes: _Modes
    node: Any  # the graph's, where it was tied to it
    layer: Any  # the last one in what it stands for
    taken = False  # whether a sum or a clamp has joined it, so that its gradient passes it by

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        joined = _join(func, args, kwargs)
        if joined is not None:
            return joined
        if func in FUNCTIONS and args and _is_here(args[0]) and not torch.compiler.is_compiling():
            result = FUNCTIONS[func](*args, **(kwargs or {}))
            settle_written(args[0], result)
            return result
        stand_ins = _stand_ins(args, kwargs)
        for x in _listened_to(func, args, kwargs or {}):
            _check_audible(x)
        args, kwargs = tree_map_only(Deferred, plain, (args, kwargs or {}))
        result = func(*args, **kwargs)
        for x in stand_ins:
            settle_written(x, result, func in _LISTENERS)
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has a static one
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        _stand_ins(args, kwargs)
        args, kwargs = tree_map_only(Deferred, plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def _stand_ins(args: Any, kwargs: Any) -> list[Deferred]:
    """The deferred tensors among what a function gets that takes their values, noted as touched."""
    found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Deferred)]
    if (seen := _JOINING.get()) is not None:
        seen.touched.update(x.layer for x in found)
    return found


def _is_here(x: Any) -> bool:
    """Whether ``x`` stands for a result, and no checkpoint has begun since, which runs again with values."""
    return isinstance(x, Deferred) and x.modes.hooks == hooks_in_force()


def defer(pending: Pending) -> Tensor:
    """Make the tensor that stands for ``pending``; inside :func:`at_once` its value."""
    if _AT_ONCE.get():
        return pending.compute()
    return _standing_for(pending)


def _standing_for(pending: Pending, stand_in: Deferred | None = None) -> Deferred:
    """A tensor that stands for ``pending`` from here on: ``stand_in``, or a new one."""
    anchored = _Anchor.apply(pending, stand_in, *pending.inputs)
    anchored.modes, anchored.node = _Modes.here(), _node(anchored)
    if stand_in is None:
        anchored.layer = pending.norm or pending.conv
    if (seen := _JOINING.get()) is not None:
        seen.made(anchored)
    return anchored


def _node(x: Deferred) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return x.grad_fn


class Joining:
    """What becomes of tensors that stand for results.

    Attributes:
        joined: the normalizations whose result was joined by a sum or a clamp.
        touched: the layers whose result was given to anything else than what may join it or takes its value:
            who views it, writes to it or listens to it is better off with the value itself.
    """

    def __init__(self) -> None:
        self.joined: set[Any] = set()
        self.touched: set[Any] = set()
        self._made: list[weakref.ref[Deferred]] = []

    def made(self, stand_in: Deferred) -> None:
        """Note a tensor that stands for a result."""
        self._made.append(weakref.ref(stand_in))

    def kept(self) -> list[Any]:
        """The layers whose result somebody still holds, who may ask for it much later."""
        alive = (x.pending for x in (made() for made in self._made) if x is not None)
        return [pending.norm or pending.conv for pending in alive if pending is not None]


@contextmanager
def joining() -> Iterator[Joining]:
    """Watch what becomes of tensors that stand for results."""
    seen = Joining()
    before = _JOINING.set(seen)
    try:
        yield seen
    finally:
        _JOINING.reset(before)


@contextmanager
def at_once() -> Iterator[None]:
    """Let every layer return its value, for who is to see which layer computes what."""
    before = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(before)


def plain(x: Tensor) -> Tensor:
    """Return the value of ``x``, which may be a :class:`Deferred`."""
    if not isinstance(x, Deferred):
        return x
    if x.known is None:
        assert x.pending is not None
        with nullcontext() if x.modes == _Modes.here() else x.modes.restored():
            value = x.pending.compute()
        x.known, x.pending, x.version = value, None, version_of(value)
    if (node := _node(x)) is not x.node:  # a Function returned it: checkpoints do, without gradients inside
        with torch.inference_mode(False), torch.enable_grad():
            x.known = _Returned.apply(x, x.known)
        x.node, x.version = node, version_of(x.known)
    return x.known


def pending_of(x: Tensor) -> Pending | None:
    """What ``x`` stands for; None if its value is known, or was to be computed in other modes than these."""
    if not isinstance(x, Deferred) or x.pending is None or x.modes != _Modes.here():
        return None
    return x.pending


def clamped(x: Deferred, lower: float, upper: float, inplace: bool, keep: bool) -> Tensor | None:
    """``clamp(x)`` computed with what ``x`` stands for; None if it does not join.

    Args:
        x: left as it is, or, ``inplace``, made to stand for the result.
        lower, upper: bounds.
        inplace: the layer was asked to overwrite ``x``.
        keep: the layer after it saves the result.
    """
    pending = pending_of(x)
    result = None if pending is None else pending.clamp(lower, upper, keep)
    if pending is None or result is None:
        return None
    _note(pending)
    x.taken = not inplace
    if inplace:
        _settle(x, result)
    return result


def _note(pending: Pending) -> None:
    if (seen := _JOINING.get()) is not None:
        seen.joined.add(pending.norm)


def _is_view_of(result: Any, value: Tensor) -> bool:
    """Whether someone may write to ``value``, which has a gradient, by way of ``result``."""
    if not isinstance(result, Tensor) or not value.requires_grad or result is value:
        return False
    return result._base is not None and result._base is (value if value._base is None else value._base)


def _settle(x: Deferred, value: Tensor) -> None:
    """Let ``x`` stand for ``value``, also in the graph."""
    _standing_for(_Known(value), x)
    x.pending, x.known, x.version = None, value, version_of(value)


def settle_written(x: Deferred, result: Any, listened: bool = False) -> None:
    """Tell the graph of a value that was written to, may now be, or is listened to."""
    if x.known is None:
        return
    if written := _written(x):
        x.taken = False  # by those who had it before
    if listened or written or _is_view_of(result, x.known):
        _settle(x, x.known)


def _written(x: Deferred) -> bool:
    return x.known is not None and version_of(x.known) != x.version


def _listened_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Deferred]:
    """The tensors whose gradient a function asks for."""
    if func in _LISTENERS:
        wanted: Any = args[:1]
    elif func is torch.autograd.grad:
        wanted = kwargs.get("inputs", args[1:2])
    else:
        return []
    return [x for x in tree_leaves(wanted) if isinstance(x, Deferred)]


def _check_audible(x: Deferred) -> None:
    """Refuse to tell a gradient that goes another way; on an example the layer is told not to wait."""
    if x.taken and not _written(x) and _JOINING.get() is None:
        raise ThawkitError(
            f"the gradient of the result of a frozen {x.layer.stock.__name__} was asked for, or a hook "
            "registered on it, after a sum or a clamp had joined it: that would not be all of its gradient; "
            "register the hook before, or freeze with an example= on which the model does the same"
        )


class _Known:
    def __init__(self, value: Tensor) -> None:
        self.shape, self.like = tuple(value.shape), value
        self.inputs: tuple[Tensor, ...] = (value,)
        self.norm = self.conv = None
        self._edge = get_gradient_edge(value) if value.requires_grad else None

    def compute(self) -> Tensor:
        return self.like

    def passed_on(self, grad: Tensor) -> Tensor:
        """The gradient at the value's former place in the graph: a view may have been written to since.

        The value's own hooks run there, and must not run here.
        """
        if self._edge is None or get_gradient_edge(self.like)[:2] == self._edge[:2]:
            return grad
        again = torch.is_grad_enabled()
        return torch.autograd.grad(self.like, [self._edge], grad, retain_graph=True, create_graph=again)[0]

    def add(self, other: Tensor) -> None:
        return None

    def clamp(self, lower: float, upper: float, keep: bool) -> None:
        return None


class WrittenInput(ThawkitError):
    """What a layer that waits needs was written to. Attributes: ``module``, the layer."""

    def __init__(self, module: Any, what: str) -> None:
        super().__init__(
            f"{what} of a frozen {module.stock.__name__} was written to before its result was used, which is "
            "computed when it is; let the model use the result first, or write to a copy, or freeze with an "
            "example= on which it does the same"
        )
        self.module = module


class Input:
    """The input of a layer that waits, which must not change until it is used."""

    def __init__(self, x: Tensor, module: Any) -> None:
        self._x, self._version, self._module = x, version_of(x), module
        self._sample = sample(x) if x.is_inference() else None  # which counts no versions

    def get(self) -> Tensor:
        """Return the input.

        Raises:
            WrittenInput: it was written to in the meantime.
        """
        written = version_of(self._x) != self._version
        if written or (self._sample is not None and not torch.equal(self._sample, sample(self._x))):
            raise WrittenInput(self._module, "the input")
        return self._x


class Parts:
    """Parameters and buffers of a layer that waits, which must not change until they are used."""

    def __init__(self, module: Any, *tensors: Tensor | None) -> None:
        self._module, self._tensors = module, tensors
        self._marks = self._seen()

    def _seen(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), version_of(t)) for t in self._tensors if t is not None]

    def get(self) -> tuple[Any, ...]:
        """Return the tensors that the layer had when it was called.

        Raises:
            WrittenInput: one was written to in the meantime.
        """
        if self._seen() != self._marks:
            raise WrittenInput(self._module, "a parameter or buffer")
        return self._tensors


def _join(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor | None:
    """The sum of a deferred tensor and another one where that can be deferred, too."""
    if func not in _SUMS or kwargs or len(args) != 2:
        return None
    a, b = args
    inplace = func is Tensor.add_
    if not inplace and not isinstance(a, Deferred) and pending_of(b) is not None:
        a, b = b, a
    pending = pending_of(a)
    if pending is None or not isinstance(b, Tensor) or a is b:
        return None
    other = plain(b)
    if other.shape != a.shape or other.dtype != a.dtype or other.device != a.device:
        return None
    total = pending.add(other)
    if total is None:
        return None
    _note(pending)
    a.taken = not inplace
    return _standing_for(total, a if inplace else None)


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
        if isinstance(ctx.pending, _Known):
            return None, None, ctx.pending.passed_on(grad)
        with torch.enable_grad():
            value = ctx.pending.compute()
        needed = [x for x in ctx.pending.inputs if x.requires_grad]
        found = iter(torch.autograd.grad(value, needed, grad, create_graph=torch.is_grad_enabled()))
        return None, None, *(next(found) if x.requires_grad else None for x in ctx.pending.inputs)


class _Returned(torch.autograd.Function):
    """The value of a deferred tensor that has a history of its own in the graph."""

    @staticmethod
    def forward(ctx: Any, stand_in: Deferred, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_AT_ONCE: ContextVar[bool] = ContextVar("at_once", default=False)
_JOINING: ContextVar[Joining | None] = ContextVar("joining", default=None)

# What stands in for a function of torch whose first argument is a tensor: see functional.py, which fills it.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
_LISTENERS = {Tensor.register_hook, Tensor.retain_grad}
_SUMS = {torch.add, Tensor.add, Tensor.add_}
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    # torch resets them when a Function marks a tensor dirty
    vars(torch._C.TensorBase)["_backward_hooks"].__set__,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_meta", "layout")
    ),
}
