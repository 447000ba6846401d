"""Running a model's forward in part: as far as the features, or from them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from thawkit.frozen.cut.plan import Frame, NoCutError, Outputs, Plan, Sub
from thawkit.frozen.cut.trace import METADATA, name_of
from thawkit.frozen.deferred import pending_of, plain
from thawkit.frozen.functional import Watcher, settled
from thawkit.frozen.layers import FrozenBatchNorm
from thawkit.frozen.measure import training_modes


@dataclass(frozen=True)
class Form:
    """The shape of a tensor by batch size: dimension ``i`` is ``fixed[i] + n * scaled[i] / of``."""

    fixed: tuple[int, ...]
    scaled: tuple[int, ...]
    of: int
    dtype: torch.dtype
    device: torch.device

    def make(self, n: int) -> Tensor:
        """A placeholder of that shape for ``n`` samples."""
        shape = tuple(f + n * s // self.of for f, s in zip(self.fixed, self.scaled, strict=True))
        return Tensor._make_wrapper_subclass(_Placeholder, shape, dtype=self.dtype, device=self.device)


class _Placeholder(Tensor):
    """Stands for a value before the cut, which is not computed."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise NoCutError(f"{name_of(func)} asks for a value that is not kept")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has a static one
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NoCutError(f"{func} asks for a value that is not kept")


class _Done(BaseException):
    """All features are there: the rest need not run. No ``except Exception`` of the model may stop it."""


class Run(Watcher):
    """One forward pass in which prefix and rest are told apart.

    Args:
        plan: tells prefix and rest apart.
        n: samples in the batch.
        slots: features and constants by number; None to compute everything and collect them.
        stop: whether to end when all are collected.
        learn: whether to take the modules that are not called for such as evaluation does without.
    """

    def __init__(
        self, plan: Plan, n: int, slots: dict[int, Tensor] | None, *, stop: bool, learn: bool = False
    ) -> None:
        super().__init__()
        self._plan, self._n, self._stop, self._learn = plan, n, stop, learn
        self._trains = plan.model.training
        self._collects = slots is None
        self.slots = slots or {}
        self.seen: dict[int, tuple[TreeSpec, list[Any]]] = {}
        self.waiting: set[int] = set()  # slots of values that were not computed before they were collected
        self._stack: list[tuple[Frame, list[int]] | None] = []

    def __call__(self, call: Any, inputs: list[Tensor]) -> Any:
        """Run the model on the arguments ``call``, whose tensors are ``inputs``; None if it was stopped."""
        plan = self._plan
        args, kwargs = call
        if self._collects:
            for value, tensor in zip(plan.inputs, inputs, strict=True):
                self._keep(plan.numbers.get(id(value)), tensor)
        try:
            with _watched(plan.patched, self._around), settled(), self:
                self._stack.append((plan.frame, [0, 0]))
                return plan.model(*args, **kwargs)
        except _Done:
            return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        top = self._stack[-1]
        if top is None or func in METADATA:
            return func(*args, **kwargs)
        frame, counts = top
        if counts[0] >= len(frame.ops) or not any(isinstance(x, Tensor) for x in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        op = frame.ops[counts[0]]
        counts[0] += 1
        if op.step.name != name_of(func):
            raise NoCutError(
                f"the model took another path than on the example: in {op.step.call.name!r} came "
                f"{name_of(func)}, expected {op.step.name}"
            )
        if not op.skip:
            return func(*args, **kwargs)
        if self._collects:
            return self._collect(op.outputs, func(*args, **kwargs))
        return self._give(op.outputs)

    def _around(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What watched modules do for a forward."""
        top = self._stack[-1]
        if top is None:
            return forward(*args, **kwargs)
        sub = self._next(*top, module)
        if sub is not None and sub.outputs is not None and not self._collects:
            return self._give(sub.outputs)
        inner = None if sub is None or sub.frame is None else (sub.frame, [0, 0])
        self._stack.append(inner)
        try:
            if inner is not None:
                return forward(*args, **kwargs)
            with _pop_mode_temporarily():
                result = forward(*args, **kwargs)
        finally:
            self._stack.pop()
        return result if sub is None or sub.outputs is None else self._collect(sub.outputs, result)

    def _next(self, frame: Frame, counts: list[int], module: nn.Module) -> Sub | None:
        """What the frame holds for the next call, which is one of ``module``; None past its last part."""
        while counts[1] < len(frame.subs):
            sub = frame.subs[counts[1]]
            counts[1] += 1
            if sub.call.module is module:
                return sub
            sub.only_trains |= self._learn
            if self._trains or not sub.only_trains:
                raise NoCutError(
                    f"the model took another path than on the example: a {type(module).__name__} was called, "
                    f"expected {sub.call.name!r}"
                )
        return None

    def _give(self, outputs: Outputs) -> Any:
        assert outputs.spec is not None
        leaves = [
            self.slots[slot] if slot is not None else leaf.make(self._n) if isinstance(leaf, Form) else leaf
            for slot, leaf in zip(outputs.slots, outputs.leaves, strict=True)
        ]
        return tree_unflatten(leaves, outputs.spec)

    def _collect(self, outputs: Outputs, result: Any) -> Any:
        leaves, spec = tree_flatten(result)
        if len(leaves) != len(outputs.slots) or (outputs.spec is not None and spec != outputs.spec):
            raise NoCutError("a part before the cut returns another structure than on the example")
        if not self._stop:
            self.seen[id(outputs)] = spec, leaves
        for leaf, slot in zip(leaves, outputs.slots, strict=True):
            self._keep(slot, leaf)
        return result

    def _keep(self, slot: int | None, tensor: Tensor) -> None:
        if slot is None or slot in self.slots:
            return
        if pending_of(tensor) is not None:
            self.waiting.add(slot)
        with torch._C.DisableTorchFunction():
            self.slots[slot] = plain(tensor).detach().clone()
        if self._stop and len(self.slots) == len(self._plan.subjects):
            raise _Done


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put a model in training mode as ``model.train()`` does; put back modes, buffers and random state."""
    held = {m for m in model.modules() if isinstance(m, FrozenBatchNorm)}
    with training_modes(model, held):
        yield


@contextmanager
def _watched(modules: list[nn.Module], around: Callable[..., Any]) -> Iterator[None]:
    """Let ``around(module, forward, ...)`` stand in for the forward of each module."""
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = _Forward(around, module, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


class _Forward:
    def __init__(self, around: Callable[..., Any], module: nn.Module, forward: Callable[..., Any]) -> None:
        self._around, self._module, self.__wrapped__ = around, module, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self._module, self.__wrapped__, *args, **kwargs)
