"""What a training step would save and take with a batch of another size, told from small batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from thawkit.errors import ThawkitError
from thawkit.frozen.layers import FrozenBatchNorm
from thawkit.frozen.measure import Example, held_bytes, saved_by_module, tensors_of
from thawkit.frozen.packs import forget_all, packed_bytes

_SIZES = (2, 3)  # not 1: in training mode a batch normalization takes no batch of one value a channel
_LARGER = 24  # for batches of this size and more torch takes other algorithms, with memory of their own
_TOLERANCE = 0.02
_ROUNDING = 4096  # bytes: bits and codes fill whole bytes


@dataclass(frozen=True)
class Forecast:
    """What a training step is going to save for its backward pass.

    Attributes:
        batch_size: of the step.
        saved_bytes: bytes that autograd is going to keep.
        by_module: the same by the dotted name of the module that saves them; empty for the model's own code.
    """

    batch_size: int
    saved_bytes: int
    by_module: Mapping[str, int]


class Forecaster:
    """Measures a frozen model on small batches when first asked, and draws lines through the bytes.

    Copies of it, and pickles, hold what is known, and neither model nor example.
    """

    def __init__(self, model: nn.Module, example: Example, saved: Counter[str]) -> None:
        self._model: ref[nn.Module] | None = ref(model)
        self._state = _state(model)
        self._size = batch_size(example)
        self._example = None if self._size is None else resized(example, self._size, _SIZES[1])
        self._saved = saved
        self._lines: dict[str, tuple[float, float]] | None = None
        self._step: tuple[int, list[tuple[float, float]]] | None = None
        self._excess: int | None = None
        self._resident = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        self._trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": None, "_example": None}

    def forecast(self, size: int) -> Forecast:
        """Forecast the bytes for a batch of ``size``; see :meth:`FreezeReport.forecast` for the errors."""
        if not isinstance(size, int) or size < 1:
            raise ThawkitError(f"batch_size: expected an integer of at least 1, got {size!r}")
        by_module = {name: _at(line, size) for name, line in self.lines().items()}
        return Forecast(size, sum(by_module.values()), by_module)

    def largest_batch(self, memory: int, states: int) -> int:
        """See :meth:`FreezeReport.largest_batch`."""
        for name, value in (("memory_bytes", memory), ("optimizer_states", states)):
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ThawkitError(f"{name}: expected a finite number of 0 or more, got {value!r}")
        packed, lines = self.step()
        room = memory - self._resident - packed - states * self._trainable

        def largest(room: float) -> int:
            return max(0, math.floor(min((room - fixed) / growth for growth, fixed in lines if growth > 0)))

        size = largest(room)
        return size if size < 2 * _LARGER else largest(room - self.excess())

    def step(self) -> tuple[int, list[tuple[float, float]]]:
        """Bytes of weights laid out anew, and lines of which the highest tells what a step holds at its peak.

        A line is the bytes by sample, and those at a batch of 0, at one moment of a step.
        """
        if self._step is None:
            self.lines()  # raises where the bytes do not follow the batch
            model, evaluating = self._source()
            packed, moments = 0, []
            for size in _SIZES:
                moments.append(self._held(model, evaluating, size))
                packed = packed_bytes(model)
                forget_all(model)  # the layouts for small batches
            self._step = packed, _highest(moments)
        return self._step

    def excess(self) -> int:
        """Bytes by which a step of a larger batch is above the lines that small ones tell."""
        if self._excess is None:
            model, evaluating = self._source()
            self._excess = max(0, max(self._held(model, evaluating, _LARGER)) - self._expected(_LARGER))
            forget_all(model)
        return self._excess

    def _expected(self, size: int) -> int:
        return max(_at((fixed, growth), size) for growth, fixed in self.step()[1])

    def _held(self, model: nn.Module, evaluating: set[nn.Module], size: int) -> list[int]:
        """Bytes at each moment of a step, its input among them."""
        example = resized(self._example, _SIZES[1], size)
        inputs = sum(x.nbytes for x in tensors_of(example))
        return [inputs + held for held in held_bytes(model, example, evaluating)]

    def lines(self) -> dict[str, tuple[float, float]]:
        """Bytes at a batch of 0 and bytes that each sample adds, by module."""
        if self._lines is None:
            self._lines = self._measured()
        return self._lines

    def _source(self) -> tuple[nn.Module, set[nn.Module]]:
        """The model as it was frozen, and its modules that stay in evaluation mode."""
        model = self._model() if self._model is not None else None
        if model is None or _state(model) != self._state:
            raise ThawkitError(
                "report: its model is gone or not as it was when frozen; freeze it again for a new report"
            )
        if self._size is None:
            raise ThawkitError("report: expected an example whose first tensor has a batch dimension")
        return model, {module for module in model.modules() if isinstance(module, FrozenBatchNorm)}

    def _measured(self) -> dict[str, tuple[float, float]]:
        model, evaluating = self._source()
        assert self._size is not None
        points = {self._size: self._saved}
        for size in (*_SIZES, _SIZES[1] + 1):
            if len(points) < 3 and size not in points:
                example = resized(self._example, _SIZES[1], size)
                points[size] = saved_by_module(model, example, evaluating)
        forget_all(model)  # the layouts for small batches
        first, second, check = sorted(points)
        names = [name for name, _ in model.named_modules() if any(saved[name] for saved in points.values())]
        lines = {}
        for name in names:
            growth = (points[second][name] - points[first][name]) / (second - first)
            lines[name] = points[first][name] - growth * first, growth
            expected, found = _at(lines[name], check), points[check][name]
            if abs(expected - found) > _TOLERANCE * found + _ROUNDING:
                raise ThawkitError(
                    f"example: expected one whose tensors have the batch in their first dimension, but what "
                    f"{name or type(model).__name__!r} saves does not grow with it: {points[first][name]}, "
                    f"{points[second][name]} and {found} bytes for batches of {first}, {second} and {check}"
                )
        return lines


def _highest(moments: list[list[int]]) -> list[tuple[float, float]]:
    """The lines through the bytes at each moment of two steps, without those that others lie above.

    Where the steps differ in more than sizes, the line through their peaks.
    """
    if len({tuple(after > before for before, after in pairwise(held)) for held in moments}) > 1:
        moments = [[max(held)] for held in moments]
    first, second = _SIZES
    slopes = [((b - a) / (second - first), a) for a, b in zip(*moments, strict=True)]
    lines: list[tuple[float, float]] = []
    for growth, fixed in sorted({(slope, a - slope * first) for slope, a in slopes}, reverse=True):
        if not lines or fixed > lines[-1][1]:
            lines.append((growth, fixed))
    return lines


def _at(line: tuple[float, float], size: int) -> int:
    return max(0, round(line[0] + line[1] * size))


def _state(model: nn.Module) -> tuple[Any, ...]:
    """What decides what a model saves."""
    return tuple(map(type, model.modules())), tuple(p.requires_grad for p in model.parameters())


def batch_size(example: Example) -> int | None:
    """Size of the first dimension of the first tensor of an example; None if there is none."""
    first = next((tensor for tensor in tensors_of(example) if tensor.dim()), None)
    return None if first is None or not len(first) else len(first)


def resized(example: Any, size: int, wanted: int) -> Any:
    """An example whose tensors with ``size`` rows have ``wanted`` ones, repeated or left out."""

    def rows(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != size:
            return tensor
        index = torch.arange(wanted, device=tensor.device) % size
        return tensor.detach()[index].requires_grad_(tensor.requires_grad)

    plain = dict(example) if isinstance(example, Mapping) else example
    return tree_map_only(Tensor, rows, plain)
