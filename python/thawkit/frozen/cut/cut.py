"""A model's prefix and the rest, each to be run alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from thawkit.errors import ThawkitError
from thawkit.frozen.cut.batches import as_call, leaves_of, same_row
from thawkit.frozen.cut.plan import Frame, NoCutError, Outputs, Plan
from thawkit.frozen.cut.run import Form, Run, training
from thawkit.frozen.cut.trace import PLAIN, Step, spread_taint
from thawkit.frozen.measure import Example
from thawkit.ops.frozen.packed import version_of

_MODES = {"training", "thawed_training", "folds"}


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


class Cut:
    """A model's prefix and the rest.

    Attributes:
        features: what is kept.
        constants: values that the rest uses and that are the same for all inputs, by number.
        copies: whether the rest writes to its features, and so gets copies.
    """

    def __init__(self, plan: Plan, example: Example) -> None:
        self.model, self._plan = plan.model, plan
        self._inputs = leaves_of(example)
        self._size = self._inputs[0].shape[0]
        self._spec = tree_flatten(as_call(example))[1]
        self.features: list[Feature] = []
        self.constants: dict[int, Tensor] = {}
        self.copies = False
        self._kept: list[int] = []  # numbers of the features
        self._waiting: set[int] = set()

    @property
    def at(self) -> str:
        """The module that the prefix ends at, and why, in words."""
        return self._plan.at

    @property
    def before(self) -> list[str]:
        """Names of the modules that are not run after the cut."""
        return self._plan.before

    def settle(self, first: list[Tensor], second: list[Tensor]) -> bool:
        """Find the form of all values from two batches.

        Returns:
            False where a value has no row a sample, or cannot be seen: the plan must then be made anew, in
            which the rest computes it.

        Raises:
            NoCutError: that is an input.
        """
        runs = [self._observe(first), self._observe(second)]
        self._waiting = runs[0].waiting
        sizes = [first[0].shape[0], second[0].shape[0]]
        self.constants, self.features, self._kept = {}, [], []
        for number, value in enumerate(self._plan.subjects):
            a, b = runs[0].slots.get(number), runs[1].slots.get(number)
            if a is None or b is None:
                self._plan.move(value)
                return False
            if a.dim() and a.shape[0] == sizes[0] and b.shape[0] == sizes[1] and a.shape[1:] == b.shape[1:]:
                if not same_row(a, b):
                    if not isinstance(value.producer, Step):
                        raise NoCutError("the features of a sample depend on the other samples of its batch")
                    value.producer.own_taint = True
                    spread_taint(self._plan.root)
                    return False
                self._kept.append(number)
                self.features.append(Feature(tuple(a.shape[1:]), a.dtype, _order(a)))
            elif a.shape == b.shape and torch.equal(a, b):
                self.constants[number] = a
            else:
                self._plan.move(value)
                return False
        self._take_forms(runs[0], runs[1], sizes)
        return True

    def _take_forms(self, first: Run, second: Run, sizes: list[int]) -> None:
        parts = {id(outputs): outputs for outputs in _all_outputs(self._plan.frame)}
        for key, (spec, leaves) in first.seen.items():
            other_spec, others = second.seen[key]
            if spec != other_spec:
                raise NoCutError("a module before the cut returns another structure for another batch")
            forms = [_form(a, b, sizes) for a, b in zip(leaves, others, strict=True)]
            parts[key].spec, parts[key].leaves = spec, forms

    def join(self) -> bool:
        """Let the rest compute the kept values that the model's layers join to what comes after.

        A convolution that runs as one with its normalization rounds otherwise than the two in turn.

        Returns:
            Whether there are any: the plan must then be made anew.
        """
        for number in self._waiting:
            self._plan.move(self._plan.subjects[number])
        return bool(self._waiting)

    def _observe(self, inputs: list[Tensor]) -> Run:
        run = Run(self._plan, inputs[0].shape[0], None, stop=False)
        with training(self.model):
            run(self.call_of(inputs), inputs)
        return run

    def _leaves_of(self, example: Example) -> list[Tensor]:
        """The tensors of a batch.

        Raises:
            ThawkitError: it is built otherwise than the example.
        """
        if tree_flatten(as_call(example))[1] != self._spec:
            raise ThawkitError("the batch: expected the structure of the example that the model was cut with")
        return leaves_of(example)

    def call_of(self, tensors: Sequence[Tensor]) -> Any:
        """The model's arguments, with ``tensors`` for those of the example."""
        return tree_unflatten(list(tensors), self._spec)

    def prefix(self, example: Example) -> list[Tensor]:
        """Run the model, in training mode, as far as the features and return them, (N, \\*shape) each.

        Args:
            example: a batch of N samples, as the model takes it.
        """
        inputs = self._leaves_of(example)
        run = Run(self._plan, inputs[0].shape[0], None, stop=True)
        run(self.call_of(inputs), inputs)
        return [run.slots[number] for number in self._kept]

    def rest(self, features: Sequence[Tensor], *, learn: bool = False) -> Any:
        """Run the model from the features on, and return its output.

        Args:
            features: as :meth:`prefix` returns them, in any floating-point dtype.
            learn: note the modules that are not called now, in evaluation mode, and are in training.
        """
        n = features[0].shape[0]
        slots = dict(self.constants)
        for number, tensor, feature in zip(self._kept, features, self.features, strict=True):
            slots[number] = _restored(tensor, feature, self.copies)
        run = Run(self._plan, n, slots, stop=False, learn=learn)
        return run(self.call_of(self._stand_ins(n, slots)), [])

    def _stand_ins(self, n: int, slots: Mapping[int, Tensor]) -> list[Tensor]:
        found = []
        for value, tensor in zip(self._plan.inputs, self._inputs, strict=True):
            number = self._plan.numbers.get(id(value))
            if number is not None:
                found.append(slots[number])
            else:
                shape = (
                    (n, *tensor.shape[1:]) if tensor.dim() and tensor.shape[0] == self._size else tensor.shape
                )
                fixed = (0,) * len(shape)
                found.append(Form(shape, fixed, 1, tensor.dtype, tensor.device).make(n))
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
        whole = {id(m): m for module in self._plan.skipped for m in module.modules()}
        for module in whole.values():
            yield names.get(module, "?"), module, True
        for module in self._plan.own:
            if id(module) not in whole:
                yield names.get(module, "?"), module, False

    def _prefix_tensors(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for name, module, _ in self._prefix_modules():
            for holder in (module._parameters, module._buffers, vars(module)):
                for key, tensor in holder.items():
                    if isinstance(tensor, Tensor) and id(tensor) not in self._plan.moving:
                        yield f"{name}.{key}", holder, key


def _all_outputs(frame: Frame) -> Iterator[Outputs]:
    for op in frame.ops:
        yield op.outputs
    for sub in frame.subs:
        if sub.outputs is not None:
            yield sub.outputs
        if sub.frame is not None:
            yield from _all_outputs(sub.frame)


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
    return Form(tuple(fixed), tuple(scaled), sizes[0], a.dtype, a.device)
