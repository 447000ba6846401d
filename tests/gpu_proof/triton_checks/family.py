"""What there is to prove about the Triton kernels of one file: problems, configurations, planted bugs."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

KERNELS = Path(__file__).parents[3] / "kernels"


def off(got: Tensor, truth: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute truth, of finite numbers."""
    if not truth.numel():
        return 0.0
    worst, scale = (got - truth).abs().max().item(), truth.abs().max().item()
    return worst / scale if scale else worst


class Comparison(NamedTuple):
    """One output against its float64 truth."""

    name: str
    got: Tensor
    truth: Tensor
    tolerance: float
    """Of what :func:`off` returns; 0: equal, NaN where it is."""

    @property
    def fault(self) -> str:
        """What is wrong, or an empty string."""
        if self.got.shape != self.truth.shape:
            return f"{self.name} has shape {tuple(self.got.shape)}, not {tuple(self.truth.shape)}"
        got, truth = self.got.double(), self.truth.double()
        odd = ~truth.isfinite()
        if not torch.equal(got[odd].nan_to_num(nan=1e300), truth[odd].nan_to_num(nan=1e300)):
            return f"{self.name}: an infinity or NaN of the truth is missing"
        relative = off(got[~odd], truth[~odd])
        return "" if relative <= self.tolerance else f"{self.name} is off by {relative:.2g}"


class Mutant(NamedTuple):
    """A planted bug."""

    old: str
    """Text of the source."""
    new: str
    """What takes its place."""
    harmless: str = ""
    """Why nobody could notice; else somebody has to."""
    occurrence: int = 0
    """Which of the places where the text stands."""
    file: str = ""
    """Under ``kernels/``, one that the family's own file imports from; empty: that one itself."""


Problem = Callable[[ModuleType], list[Comparison]]


@dataclass(frozen=True)
class Family:
    """The kernels of one file.

    Attributes:
        name: of the family.
        file: under ``kernels/``.
        problems: by name; each runs the kernels of a module and compares.
        configurations: by name; each launches what a user's call may launch, for compiling only.
        mutants: by what is wrong.
        huge: like ``problems``, on tensors past 2^31 elements that are mostly never touched.
        multiplies: whether every kernel multiplies tiles, which tensor cores are to do.
        scattered: kernels that read no neighbours of 16 bytes: what they read lies apart, or is few bits.
    """

    name: str
    file: str
    problems: Mapping[str, Problem]
    configurations: Mapping[str, Callable[[ModuleType], None]]
    mutants: Mapping[str, Mutant] = field(default_factory=dict)
    huge: Mapping[str, Problem] = field(default_factory=dict)
    multiplies: bool = False
    scattered: frozenset[str] = frozenset()

    @property
    def rung(self) -> str:
        """The name by which the ladder has it."""
        return f"triton/{self.name}"

    def problems_for(self, mutant: str) -> list[tuple[Problem, bool]]:
        """Return the problems, and which of them are huge; those first whose names begin as the mutant's.

        The huge ones run only two programs of a launch, so they go before others.
        """
        every = [
            *((n, p, True) for n, p in self.huge.items()),
            *((n, p, False) for n, p in self.problems.items()),
        ]
        kind = mutant.split(":")[0]
        every.sort(key=lambda item: not item[0].startswith(kind))
        return [(problem, huge) for _, problem, huge in every]

    def source(self) -> str:
        """Return the text of the file."""
        return (KERNELS / self.file).read_text()

    def load(self, mutant: Mutant | None = None) -> ModuleType:
        """Return the module as it is, or with a bug."""
        source = self.source()
        if mutant is None:
            return _imported(self.file, source)
        if not mutant.file:
            return _imported(self.file, _mutated(self.file, source, mutant))
        shared = f"thawkit.kernels.{mutant.file.removesuffix('.py')}"
        broken = _imported(mutant.file, _mutated(mutant.file, (KERNELS / mutant.file).read_text(), mutant))
        with patch.dict(sys.modules, {shared: broken}):
            return _imported(self.file, source)


def _mutated(file: str, source: str, mutant: Mutant) -> str:
    at = -1
    for _ in range(mutant.occurrence + 1):
        at = source.find(mutant.old, at + 1)
        if at < 0:
            raise ValueError(f"{file} has no such text any more: {mutant.old!r}")
    return source[:at] + mutant.new + source[at + len(mutant.old) :]


def _imported(file: str, source: str) -> ModuleType:
    folder = Path(tempfile.mkdtemp(prefix="thawkit-kernels-"))
    path = folder / file
    path.write_text(source)  # Triton reads the source of a kernel from its file
    spec = importlib.util.spec_from_file_location(f"proof_{folder.name.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(comparisons: list[Comparison]) -> list[str]:
    """Return what is wrong."""
    return [c.fault for c in comparisons if c.fault]


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory whose values show where nobody wrote."""
    if dtype.is_floating_point:
        return torch.full(shape, torch.nan, dtype=dtype)
    return torch.full(shape, 0xA5 if dtype == torch.uint8 else -77, dtype=dtype)


def virtual(rows: int, columns: int, stride: int, dtype: torch.dtype) -> Tensor:
    """Return rows so far apart that the last lies past 2^31 elements; the gaps never get memory."""
    return torch.empty((rows - 1) * stride + columns, dtype=dtype).as_strided((rows, columns), (stride, 1))
