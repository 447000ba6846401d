"""Where the frozen prefix of a model ends, and running what is before or after that alone.

:func:`find_cut` records one forward pass (:mod:`thawkit.frozen.trace`). What is not tainted there is the
prefix: whole modules where nothing in them is tainted, else single calls of torch functions in the code of a
module that holds both. The values of the prefix that the rest uses are the *features*. Running the rest is
running the model's own ``forward``, in which modules of the prefix are not called and functions of the prefix
not computed: they return the features, or placeholders of the right shape that nobody can read. So hooks,
modes, dropout and autocast of the rest act as always, and no graph is rewritten.

A cut is taken only if it is right where it can be seen: on two batches of different size and content the rest
must give, from the features, the very bits that the whole model gives, in training mode with all gradients
and in evaluation mode, and the features of a sample must not depend on the other samples of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import at_once, pending_of, plain
from thawkit.frozen.functional import Watcher, settled
from thawkit.frozen.layers import FrozenBatchNorm, Rewritten
from thawkit.frozen.measure import Example, training_modes
from thawkit.frozen.structure import is_leaf
from thawkit.frozen.trace import METADATA, PLAIN, Call, Recorder, Step, Value, name_of
from thawkit.ops.frozen.packed import version_of

_MODES = {"training", "thawed_training", "folds"}
_ROUNDS = 50  # of moving the cut to where its values have one row a sample
_MIXING = 1e-3  # of the largest magnitude: rounding differs with the size of a batch, by far less


class NoCutError(ThawkitError):
    """A model that cannot be cut; the message says why."""


class _DiffersError(NoCutError):
    """Prefix and rest do not give what the model gives, in training mode."""


@dataclass(frozen=True)
class Feature:
    """One value that is kept: its shape without the samples' dimension, its dtype, and its strides' order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes a sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Form:
    """The shape of a tensor by batch size: dimension ``i`` is ``fixed[i] + n * scaled[i] / of``."""

    fixed: tuple[int, ...]
    scaled: tuple[int, ...]
    of: int
    dtype: torch.dtype
    device: torch.device

    def make(self, n: int) -> Tensor:
        shape = tuple(f + n * s // self.of for f, s in zip(self.fixed, self.scaled, strict=True))
        return Tensor._make_wrapper_subclass(_Placeholder, shape, dtype=self.dtype, device=self.device)


@dataclass
class _Op:
    """A call of a torch function in a frame; of a skipped one, what it returns."""

    step: Step
    skip: bool
    outputs: _Outputs


@dataclass
class _Sub:
    """A module call in a frame: skipped, entered with a frame of its own, or run as it is.

    ``only_trains`` says that evaluation does without it, as without an auxiliary head.
    """

    call: Call
    outputs: _Outputs | None
    frame: _Frame | None
    only_trains: bool = False


@dataclass
class _Outputs:
    """What a skipped part returns: for each leaf the number of a feature, or a form, or the value itself."""

    slots: list[int | None]
    spec: TreeSpec | None = None
    leaves: list[Any] = field(default_factory=list)


@dataclass
class _Frame:
    """The prefix in the code of one module call, in order; past the last skipped part nothing is watched."""

    ops: list[_Op] = field(default_factory=list)
    subs: list[_Sub] = field(default_factory=list)


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


class Cut:
    """A model's prefix and the rest.

    Attributes:
        features: what is kept.
        constants: values that the rest uses and that are the same for all inputs.
        before: names of the modules that are not run after the cut.
        at: the module that the prefix ends at, and why, in words.
        own: modules in whose own code a part of the prefix stands.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model = model
        self._inputs = _leaves(example)
        self._size = self._inputs[0].shape[0]
        self._spec = tree_flatten(_as_call(example))[1]
        self._opened: set[Call] = set()
        self._forced: set[Step] = set()
        self._writes = False
        self.constants: dict[int, Tensor] = {}

    # -- planning ---------------------------------------------------------------------------------------

    def plan(self, recorder: Recorder) -> None:
        """Divide what was recorded; slots are numbered in the order of their use."""
        self._root, self._values = recorder.root, recorder.inputs
        self._whole: dict[Call, bool] = {}
        self.subjects: list[Value] = []  # the values that are kept
        numbers: dict[int, int] = {}

        def keep(value: Value) -> None:
            if value.derived and not self._at_hand(value) and id(value) not in numbers:
                numbers[id(value)] = len(self.subjects)
                self.subjects.append(value)

        self.before: list[str] = []
        self._parameters = False
        first = next((step for step in self._root.steps() if step.tainted), None)
        self.at = _place(first) if first else ""
        self.own: list[nn.Module] = []
        self._skipped: list[nn.Module] = []
        self._moving = {  # tensors that train or that the forward writes to: not the prefix's
            id(v.tensor) for s in self._root.steps() for v in (*s.operands, *s.changes) if v.tainted
        } | {id(p) for p in self.model.parameters() if p.requires_grad}
        for step in self._uses(self._root):
            for value in step.operands:
                keep(value)
        for leaf in self._root.leaves:
            if isinstance(leaf, Value):
                keep(leaf)
        self._numbers = numbers
        self._frame = self._frame_of(self._root)
        self._patched = list({id(m): m for m in self._modules(self._frame)}.values())

    def _at_hand(self, value: Value) -> bool:
        """Whether the rest computes a value by itself."""
        return value.tainted or (isinstance(value.producer, Step) and self._runs(value.producer))

    def _runs(self, step: Step) -> bool:
        return step.tainted or step in self._forced or not step.derived or self._undivided(step.call)

    def _undivided(self, call: Call | None) -> bool:
        """Whether a call is part of a layer of which something runs after the cut, which then runs whole."""
        while call is not None and call.parent is not None:
            if call not in self._whole:
                layer = is_leaf(call.module) or isinstance(call.module, Rewritten)
                runs = layer and (call.tainted or any(step in self._forced for step in call.steps()))
                self._whole[call] = runs
            if self._whole[call]:
                return True
            call = call.parent
        return False

    def _skippable(self, call: Call) -> bool:
        return (
            call.parent is not None
            and call not in self._opened
            and not call.tainted
            and not self._undivided(call)
            and all(isinstance(leaf, (Value, *PLAIN)) for leaf in call.leaves)
            and not any(step in self._forced for step in call.steps())
            and (any(step.derived for step in call.steps()) or self._makes_own(call))
        )

    @staticmethod
    def _makes_own(call: Call) -> bool:
        return any(isinstance(v, Value) and v.producer is call and not v.tainted for v in call.leaves)

    def _uses(self, call: Call) -> Iterator[Step]:
        """The steps that are run after the cut, and those that read a value."""
        for item in call.items:
            if isinstance(item, Step):
                reads = not item.changes and not any(isinstance(leaf, Value) for leaf in item.leaves)
                if reads:
                    self._forced.add(item)
                if self._runs(item):
                    yield item
            elif not self._skippable(item):
                yield from self._uses(item)

    def _holds_prefix(self, call: Call) -> bool:
        return any(
            not self._runs(item)
            if isinstance(item, Step)
            else self._skippable(item) or self._holds_prefix(item)
            for item in call.items
        )

    def _frame_of(self, call: Call) -> _Frame:
        frame = _Frame()
        if call.module not in self.own:
            self.own.append(call.module)
        for item in call.items:
            if isinstance(item, Step):
                if not item.operands:
                    continue  # makes a tensor out of nothing: always run
                skip = not self._runs(item)
                self._parameters |= skip and item.uses_parameter
                frame.ops.append(_Op(item, skip, self._outputs(item.leaves)))
            elif self._skippable(item):
                self.before.append(item.name)
                self._skipped.append(item.module)
                self._parameters |= any(step.uses_parameter for step in item.steps())
                frame.subs.append(_Sub(item, self._outputs(item.leaves), None))
            else:
                inner = self._frame_of(item) if self._holds_prefix(item) else None
                frame.subs.append(_Sub(item, None, inner))
        while frame.ops and not frame.ops[-1].skip:
            frame.ops.pop()
        while frame.subs and frame.subs[-1].outputs is None and frame.subs[-1].frame is None:
            frame.subs.pop()
        return frame

    def _outputs(self, leaves: list[Any]) -> _Outputs:
        return _Outputs([self._numbers.get(id(leaf)) for leaf in leaves])

    def _modules(self, frame: _Frame) -> Iterator[nn.Module]:
        """The modules whose calls are watched: those called from code that holds a part of the prefix."""

        def called(call: Call, watched: _Frame) -> Iterator[nn.Module]:
            inner = {sub.call: sub.frame for sub in watched.subs if sub.frame is not None}
            for item in call.items:
                if isinstance(item, Call):
                    yield item.module
                    if item in inner:
                        yield from called(item, inner[item])

        yield from called(self._root, frame)

    # -- settling what is kept ----------------------------------------------------------------------------

    def settle(self, first: list[Tensor], second: list[Tensor]) -> bool:
        """Find the form of all values from two batches.

        Returns:
            False where a value has no row a sample, or cannot be seen: the plan must be made anew, in which
            the rest computes it.

        Raises:
            NoCutError: that is an input.
        """
        runs = [self._observe(first), self._observe(second)]
        self._waiting = runs[0].waiting
        sizes = [first[0].shape[0], second[0].shape[0]]
        self.constants = {}
        self.features: list[Feature] = []
        self._kept: list[int] = []
        for number, value in enumerate(self.subjects):
            a, b = runs[0].slots.get(number), runs[1].slots.get(number)
            if a is None or b is None:
                return self._move(value)
            if a.dim() and a.shape[0] == sizes[0] and b.shape[0] == sizes[1] and a.shape[1:] == b.shape[1:]:
                if not _same_row(a, b):
                    if not isinstance(value.producer, Step):
                        raise NoCutError("the features of a sample depend on the other samples of its batch")
                    value.producer.own_taint = True
                    _spread_taint(self._root)
                    return False
                self._kept.append(number)
                self.features.append(Feature(tuple(a.shape[1:]), a.dtype, _order(a)))
            elif a.shape == b.shape and torch.equal(a, b):
                self.constants[number] = a
            else:
                return self._move(value)
        for outputs, forms in runs[0].seen.items():
            spec, leaves = forms
            other_spec, others = runs[1].seen[outputs]
            if spec != other_spec:
                raise NoCutError("a module before the cut returns another structure for another batch")
            part = self._parts[outputs]
            part.spec, part.leaves = spec, [_form(a, b, sizes) for a, b in zip(leaves, others, strict=True)]
        return True

    def _move(self, value: Value) -> bool:
        producer = value.producer
        hidden = self._hiding(producer)
        if hidden is not None:
            self._opened.add(hidden)
        elif isinstance(producer, Step):
            self._forced.add(producer)
        else:
            raise NoCutError("the rest needs an input that has no row for each sample")
        return False

    def economize(self) -> bool:
        """Let the rest compute what is a function, without parameters, of other values that are kept.

        Returns:
            False where there is such a value: the plan must be made anew.
        """
        for value in self.subjects:
            step = value.producer
            if (
                isinstance(step, Step)
                and not step.uses_parameter
                and all(self._at_hand(v) or id(v) in self._numbers for v in step.operands if v.derived)
            ):
                self._forced.add(step)
                return False
        return True

    def join(self) -> bool:
        """Let the rest compute the kept values that the model's layers join to what comes after.

        A convolution that runs as one with its normalization rounds otherwise than the two in turn.

        Returns:
            Whether there are any: the plan must then be made anew.
        """
        waiting = [value for number, value in enumerate(self.subjects) if number in self._waiting]
        for value in waiting:
            self._move(value)
        return bool(waiting)

    def _hiding(self, producer: Step | Call | None) -> Call | None:
        """The skipped module call in or as which ``producer`` happens."""
        call = producer.call if isinstance(producer, Step) else producer
        chain: list[Call] = []
        while call is not None:
            chain.append(call)
            call = call.parent
        return next((c for c in reversed(chain) if self._skippable(c)), None)

    def _observe(self, inputs: list[Tensor]) -> _Run:
        self._parts = {id(outputs): outputs for outputs in _all_outputs(self._frame)}
        run = _Run(self, inputs[0].shape[0], None, stop=False)
        with training(self.model):
            run(self._call_of(inputs), inputs)
        return run

    # -- use ------------------------------------------------------------------------------------------------

    def leaves_of(self, example: Example) -> list[Tensor]:
        """The tensors of a batch.

        Raises:
            ThawkitError: it is built otherwise than the example.
        """
        if tree_flatten(_as_call(example))[1] != self._spec:
            raise ThawkitError("the batch: expected the structure of the example that the model was cut with")
        return _leaves(example)

    def _call_of(self, tensors: Sequence[Tensor]) -> Any:
        """The model's arguments, with ``tensors`` for those of the example."""
        return tree_unflatten(list(tensors), self._spec)

    def prefix(self, example: Example) -> list[Tensor]:
        """Run the model, in training mode, as far as the features and return them, (N, \\*shape) each.

        Args:
            example: a batch of N samples, as the model takes it.
        """
        inputs = self.leaves_of(example)
        run = _Run(self, inputs[0].shape[0], None, stop=True)
        run(self._call_of(inputs), inputs)
        return [run.slots[number] for number in self._kept]

    def rest(self, features: Sequence[Tensor]) -> Any:
        """Run the model from the features on, and return its output.

        Args:
            features: as :meth:`prefix` returns them, in any floating-point dtype.
        """
        return self._rest(features)

    def _rest(self, features: Sequence[Tensor], *, learn: bool = False) -> Any:
        n = features[0].shape[0]
        slots = dict(self.constants)
        for number, tensor, feature in zip(self._kept, features, self.features, strict=True):
            slots[number] = _restored(tensor, feature, self._writes)
        run = _Run(self, n, slots, stop=False, learn=learn)
        return run(self._call_of(self._stand_ins(n, slots)), [])

    def _stand_ins(self, n: int, slots: Mapping[int, Tensor]) -> list[Tensor]:
        found = []
        for value, tensor in zip(self._values, self._inputs, strict=True):
            number = self._numbers.get(id(value))
            if number is not None:
                found.append(slots[number])
            else:
                shape = (
                    (n, *tensor.shape[1:]) if tensor.dim() and tensor.shape[0] == self._size else tensor.shape
                )
                fixed = (0,) * len(shape)
                found.append(_Form(shape, fixed, 1, tensor.dtype, tensor.device).make(n))
        return found

    def state(self) -> Iterator[tuple[str, Any]]:
        """Everything of the model that the features depend on: names with classes, settings and tensors."""
        for name, module, whole in self._prefix_modules():
            yield name, type(module)
            yield name, module.extra_repr() if whole else ""
            yield name, sorted((k, repr(v)) for k, v in vars(module).items() if _is_setting(k, v))
        for name, holder, key in self._prefix_tensors():
            yield name, holder[key]

    def marks(self) -> list[tuple[dict[str, Any], str, Tensor, int, int]]:
        """Where each tensor of the prefix is held, by which name, itself, its version and its address."""
        return [
            (holder, key, holder[key], version_of(holder[key]), holder[key].data_ptr())
            for _, holder, key in self._prefix_tensors()
        ]

    def _prefix_modules(self) -> Iterator[tuple[str, nn.Module, bool]]:
        """Modules with a name, and whether all of the module is the prefix's."""
        names = {module: name for name, module in self.model.named_modules()}
        whole = {id(m): m for module in self._skipped for m in module.modules()}
        for module in whole.values():
            yield names.get(module, "?"), module, True
        for module in self.own:
            if id(module) not in whole:
                yield names.get(module, "?"), module, False

    def _prefix_tensors(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for name, module, _ in self._prefix_modules():
            for holder in (module._parameters, module._buffers, vars(module)):
                for key, tensor in holder.items():
                    if isinstance(tensor, Tensor) and id(tensor) not in self._moving:
                        yield f"{name}.{key}", holder, key

    def verify(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Compare the whole model with prefix and rest.

        Raises:
            _DiffersError: they differ in one bit of an output or gradient.
            NoCutError: in evaluation mode they differ by more than rounding.
        """
        for inputs in (first, second):
            args, kwargs = self._args(inputs)
            whole = self._outcome(partial(self.model, *args, **kwargs))
            with training(self.model), torch.enable_grad():
                torch.manual_seed(1)  # the prefix draws nothing
                features = self.prefix(_example_of(self._args(inputs)))
            versions = [t._version for t in features]
            rest = self._outcome(partial(self.rest, features))
            if [t._version for t in features] != versions:
                self._writes = True
                return self.verify(first, second)
            if not _equal(whole, rest):
                raise _DiffersError("the rest of the model, run from its features, does not give the same")
            self._verify_evaluation(inputs, features, learn=inputs is first)

    def _verify_evaluation(self, inputs: list[Tensor], features: list[Tensor], *, learn: bool) -> None:
        """The same in evaluation mode, in which a model may run other kernels, with the features of training.

        Args:
            inputs, features: of a batch.
            learn: note which modules are not called in evaluation mode.
        """
        args, kwargs = self._args(inputs)
        with training_modes(self.model, set(self.model.modules())), torch.no_grad():
            torch.manual_seed(0)
            whole = tree_leaves(self.model(*args, **kwargs))
            torch.manual_seed(0)
            rest = tree_leaves(self._rest(features, learn=learn))
        if not _equal(whole, rest, rounding=True):
            raise NoCutError("in evaluation mode the rest of the model does not give the same")

    def release(self) -> None:
        """Let go of the values that were recorded; the plan needs only what they were."""
        nothing = torch.empty(0)
        for step in self._root.steps():
            for value in (*step.operands, *step.leaves, *step.changes):
                if isinstance(value, Value):
                    value.tensor = nothing
        for value in (*self._values, *self.subjects):
            value.tensor = nothing

    def _args(self, inputs: list[Tensor]) -> Any:
        return self._call_of([t.clone() for t in inputs])

    def _outcome(self, run: Callable[[], Any]) -> list[Any]:
        """The leaves of an output and the gradients of their sum."""
        trains = [p for p in self.model.parameters() if p.requires_grad]
        with training(self.model), torch.enable_grad():
            torch.manual_seed(0)
            leaves = tree_leaves(run())
            total = [t.double().sum() for t in leaves if isinstance(t, Tensor) and t.requires_grad]
            found: Sequence[Any] = ()
            if total and trains:
                found = torch.autograd.grad(torch.stack(total).sum(), trains, allow_unused=True)
        return [*leaves, *found]


class _Run(Watcher):
    """One forward pass in which prefix and rest are told apart.

    Args:
        cut: the plan.
        n: samples in the batch.
        slots: features and constants by number; None to compute everything and collect them.
        stop: whether to end when all are collected.
        learn: whether to take the modules that are not called for such as evaluation does without.
    """

    def __init__(
        self, cut: Cut, n: int, slots: dict[int, Tensor] | None, *, stop: bool, learn: bool = False
    ) -> None:
        super().__init__()
        self._cut, self._n, self._stop, self._learn = cut, n, stop, learn
        self._trains = cut.model.training
        self._collects = slots is None
        self.slots = slots or {}
        self.seen: dict[int, tuple[TreeSpec, list[Any]]] = {}
        self.waiting: set[int] = set()  # slots of values that were not computed before they were collected
        self._stack: list[tuple[_Frame, list[int]] | None] = []

    def __call__(self, call: Any, inputs: list[Tensor]) -> Any:
        cut = self._cut
        args, kwargs = call
        if self._collects:
            for value, tensor in zip(cut._values, inputs, strict=True):
                self._keep(cut._numbers.get(id(value)), tensor)
        try:
            with _watched(cut._patched, self._around), settled(), self:
                self._stack.append((cut._frame, [0, 0]))
                return cut.model(*args, **kwargs)
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

    def _next(self, frame: _Frame, counts: list[int], module: nn.Module) -> _Sub | None:
        """What the frame holds for the next call, which is one of ``module``; None past its last part."""
        missed = None
        while counts[1] < len(frame.subs):
            sub = frame.subs[counts[1]]
            counts[1] += 1
            if sub.call.module is module:
                return sub
            if self._learn:
                sub.only_trains = True
            if self._trains or not sub.only_trains:
                missed = sub
                break
        if missed is None:
            return None
        raise NoCutError(
            f"the model took another path than on the example: a {type(module).__name__} was called, "
            f"expected {missed.call.name!r}"
        )

    def _give(self, outputs: _Outputs) -> Any:
        assert outputs.spec is not None
        leaves = [
            self.slots[slot] if slot is not None else leaf.make(self._n) if isinstance(leaf, _Form) else leaf
            for slot, leaf in zip(outputs.slots, outputs.leaves, strict=True)
        ]
        return tree_unflatten(leaves, outputs.spec)

    def _collect(self, outputs: _Outputs, result: Any) -> Any:
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
        if self._stop and len(self.slots) == len(self._cut.subjects):
            raise _Done


def find_cut(model: nn.Module, example: Example) -> Cut:
    """Find where the frozen prefix of a model ends.

    Args:
        model: with the ``requires_grad`` flags that it trains with; judged as ``model.train()`` would run it.
        example: a batch as the model takes it, samples in the first dimension of every tensor: a tensor, a
            tuple of arguments, or a mapping of keyword arguments.

    Raises:
        NoCutError: there is no such place; the message says why.
        ThawkitError: ``example`` holds no tensor with samples.
    """
    leaves = _leaves(example)
    if not leaves or not leaves[0].dim() or not leaves[0].shape[0]:
        raise ThawkitError("example: expected a batch of at least one sample, with samples in dimension 0")
    model = getattr(model, "_orig_mod", model)  # of a model under torch.compile
    device = next((p.device for p in model.parameters()), leaves[0].device)
    spec = tree_flatten(_as_call(example))[1]
    first, second = _two_batches([t.detach().to(device) for t in leaves])
    call = tree_unflatten(list(first), spec)
    cut = Cut(model, _example_of(call))
    recorder = _record(model, call, first)
    _mark_mixing(recorder, _record(model, tree_unflatten(list(second), spec), second), first, second)
    try:
        _settle(cut, recorder, first, second)
        try:
            cut.verify(first, second)
        except _DiffersError:
            if not cut.join():
                raise
            _settle(cut, recorder, first, second)
            cut.verify(first, second)
        cut.release()
    except ThawkitError:
        raise
    except Exception as error:  # whatever a model raises when its forward is run in parts
        raise NoCutError(f"the model cannot be run in parts: {type(error).__name__}: {error}") from error
    return cut


def _settle(cut: Cut, recorder: Recorder, first: list[Tensor], second: list[Tensor]) -> None:
    """Plan anew until what is kept has one row a sample, and nothing is kept that need not be."""
    for _ in range(_ROUNDS):
        cut.plan(recorder)
        if not cut._parameters:
            break
        if cut.settle(first, second) and cut.economize():
            break
    else:
        raise NoCutError("no values found that have one row for each sample")
    if not cut._parameters or not cut.features:
        raise NoCutError(_nothing_before(cut, recorder))


def _nothing_before(cut: Cut, recorder: Recorder) -> str:
    step = next((s for s in recorder.root.steps() if s.tainted), None)
    if step is None:
        return "nothing trains"
    return f"no frozen layer comes before {_place(step)}"


def _place(step: Step) -> str:
    """The module that a tainted step stands in, and what taints it, in words."""
    name = repr(step.call.name) if step.call.name else f"the {type(step.call.module).__name__}'s own code"
    trains = any(v.tensor.requires_grad for v in step.operands)
    return f"{name}, which {'trains' if trains else 'is random, changes its state or mixes samples'}"


def _record(model: nn.Module, call: Any, inputs: list[Tensor]) -> Recorder:
    args, kwargs = call
    with at_once(), training(model), torch.enable_grad():
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with settled(), Recorder(model, inputs) as recorder:
            model(*args, **kwargs)
        moved = {id(buffer) for buffer, value in before if not torch.equal(buffer, value)}
    for step in recorder.root.steps():  # some operators write to buffers without saying so
        step.own_taint |= any(id(v.tensor) in moved for v in step.operands)
    _spread_taint(recorder.root)
    return recorder


def _mark_mixing(one: Recorder, two: Recorder, first: list[Tensor], second: list[Tensor]) -> None:
    """Taint the steps after which the first sample's row depends on the rest of the batch."""
    steps = list(zip(one.root.steps(), two.root.steps(), strict=False))
    if any(a.name != b.name or len(a.leaves) != len(b.leaves) for a, b in steps):
        return  # other paths: only what is kept can be compared, later
    sizes = first[0].shape[0], second[0].shape[0]
    for a, b in steps:
        if a.tainted or not a.derived:
            continue
        for x, y in zip(a.leaves, b.leaves, strict=True):
            if not isinstance(x, Value) or not isinstance(y, Value) or x.producer is not a:
                continue
            if not (x.still() and y.still()):
                continue
            s, t = x.tensor, y.tensor
            if s.dim() and t.dim() and (s.shape[0], t.shape[0]) == sizes and s.shape[1:] == t.shape[1:]:
                a.own_taint |= not _same_row(s, t)
    _spread_taint(one.root)


def _spread_taint(root: Call) -> None:
    """Taint what depends on a step that is tainted by itself."""
    for step in root.steps():
        if step.tainted:
            for leaf in (*step.leaves, *step.changes):
                if isinstance(leaf, Value) and leaf.producer is step:
                    leaf.tainted = True


def _two_batches(leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Two batches of 2 and 3 samples that share the first one, made of a batch of any size."""
    size = leaves[0].shape[0]
    if any(t.dim() and t.shape[0] != size for t in leaves):
        raise NoCutError("the inputs have no common first dimension")

    def varied(x: Tensor) -> Tensor:
        x = x.roll(1, -1) if x.dim() > 1 else x
        return x.flip(-1) * 0.75 + 0.125 if x.is_floating_point() else x

    firsts, seconds = [], []
    for t in leaves:
        if t.dim():
            two = t[:2] if size > 1 else torch.cat([t, varied(t)])
            firsts.append(two.clone())
            seconds.append(torch.cat([two[:1], varied(two[1:]), varied(two[:1])]))
        else:
            firsts.append(t)
            seconds.append(t)
    return firsts, seconds


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


def _all_outputs(frame: _Frame) -> Iterator[_Outputs]:
    for op in frame.ops:
        yield op.outputs
    for sub in frame.subs:
        if sub.outputs is not None:
            yield sub.outputs
        if sub.frame is not None:
            yield from _all_outputs(sub.frame)


def _as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _example_of(call: Any) -> Example:
    args, kwargs = call
    return kwargs or args


def _leaves(example: Example) -> list[Any]:
    return tree_leaves(_as_call(example))


def _is_setting(name: str, value: Any) -> bool:
    """Whether an attribute of a module is one that its result may depend on; the mode is not."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return name not in _MODES and not name.startswith("_") and all(isinstance(part, PLAIN) for part in parts)


def _order(x: Tensor) -> tuple[int, ...]:
    """Dimensions from the widest stride to the narrowest; as they are for what is expanded."""
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        return tuple(range(x.dim()))
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda i: (-strides[i], i)))


def _restored(x: Tensor, feature: Feature, copy: bool) -> Tensor:
    """``x`` with the dtype and the strides of the value: kernels choose by them, even where a size is 1."""
    if x.shape[1:] != feature.shape:
        expected = ", ".join(["N", *map(str, feature.shape)])
        raise ThawkitError(f"features: expected ({expected}), got {tuple(x.shape)}")
    strides, step = [0] * x.dim(), 1
    for i in reversed(feature.order):
        strides[i] = step
        step *= x.shape[i]
    result = x.to(feature.dtype)
    if result.permute(feature.order).is_contiguous():
        result = result.as_strided(result.shape, strides)
    else:
        result = torch.empty_strided(result.shape, strides, dtype=result.dtype, device=x.device).copy_(result)
    return result.clone() if copy and result.data_ptr() == x.data_ptr() else result


def _same_row(a: Tensor, b: Tensor) -> bool:
    """Whether the first sample's row is the same but for rounding."""
    return _near(a.detach()[0], b.detach()[0])


def _near(x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point():
        return torch.equal(x, y)
    limit = max(_MIXING, 4 * torch.finfo(x.dtype).eps) * x.abs().max().item() if x.numel() else 0.0
    return bool(torch.allclose(x.double(), y.double(), rtol=0.0, atol=limit, equal_nan=True))


def _form(a: Any, b: Any, sizes: Sequence[int]) -> Any:
    """The form of a leaf seen in two batches; what is no tensor must be the same in both."""
    if not isinstance(a, Tensor):
        if isinstance(b, Tensor) or type(a) is not type(b) or a != b:
            raise NoCutError("a module before the cut returns another value for another batch")
        return a
    if not isinstance(b, Tensor) or a.dim() != b.dim() or a.dtype != b.dtype:
        raise NoCutError("a module before the cut returns another structure for another batch")
    fixed, scaled = [], []
    for p, q in zip(a.shape, b.shape, strict=True):
        if p == q:
            fixed.append(p)
            scaled.append(0)
        elif p * sizes[1] == q * sizes[0]:
            fixed.append(0)
            scaled.append(p)
        else:
            raise NoCutError("a tensor before the cut has a size that depends on its values")
    return _Form(tuple(fixed), tuple(scaled), sizes[0], a.dtype, a.device)


def _equal(a: Sequence[Any], b: Sequence[Any], *, rounding: bool = False) -> bool:
    """Whether tensors are equal, bit by bit or but for ``rounding``; what is none is not compared."""

    def same(x: Any, y: Any) -> bool:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return isinstance(x, Tensor) == isinstance(y, Tensor)
        if x.shape != y.shape or not torch.equal(x.isnan(), y.isnan()):
            return False
        return _near(x, y) if rounding else torch.equal(x.nan_to_num(), y.nan_to_num())

    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
