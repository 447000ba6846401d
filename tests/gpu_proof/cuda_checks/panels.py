"""What the checks of epilogues share: panels in memory of their own, and the problems of Triton's."""

from __future__ import annotations

from types import ModuleType

import torch
from thawkit.kernels.panel import Panel
from torch import Tensor

from tests.gpu_proof.families.epilogue import FAMILY
from tests.gpu_proof.triton_checks.family import Family, faults
from thawkit.ops.pairwise import cuda

from .registry import DTYPES, UNIT, Run, poisoned, virtual

# rows, columns, what lies between two rows, and before the first
LAYOUTS = [
    (1, 1, 0, 0),
    (3, 5, 0, 0),
    (2, 8, 0, 0),
    (3, 255, 2, 1),
    (2, 1024, 4, 0),
    (2, 1028, 0, 0),
    (2, 1024, 0, 1),
    (2, 2051, 1, 0),
]
NOTHING = [(0, 40), (3, 0)]  # rows, columns: CUDA refuses a grid of no blocks
FACTOR = 2.0
FAR = 2**30 + 8  # of three rows the last begins past 2^31


def problems(kind: str, dtype: torch.dtype) -> list[str]:
    """The names of the problems of Triton's epilogues that begin so and have slopes of the dtype."""
    of = lambda name: next((d for d in DTYPES if name.endswith(f" {str(d)[6:]}")), torch.float32)
    return [name for name in FAMILY.problems if name.startswith(kind) and of(name) == dtype]


def solve(run: Run, problem: str, family: Family = FAMILY, kernels: ModuleType = cuda) -> None:
    """Let the CUDA kernels that take what a family's do solve one of its problems."""
    with run(seed=len(problem)):
        compared = family.problems[problem](kernels)
    assert not faults(compared), faults(compared)


def placed(x: Tensor, gap: int, before: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Put rows of numbers into memory of NaN; also return that memory."""
    rows, columns = x.shape
    memory = poisoned(before + rows * (columns + gap), dtype=dtype)
    room = memory[before:].view(rows, columns + gap)
    return room[:, :columns].copy_(x), memory


def panel(
    scores: Tensor,
    dtype: torch.dtype,
    layout: tuple[int, int, int, int],
    scale: float,
    first: int,
    **rest: Tensor | None,
) -> tuple[Panel, list[Tensor]]:
    """A panel whose slopes go over float32 scores and elsewhere in half precision; and all its memory."""
    *_, gap, before = layout
    given, memory = placed(scores, gap, before)
    slopes, room = given, memory
    if dtype != torch.float32:
        slopes, room = placed(torch.full_like(scores, torch.nan), gap, before, dtype)
    return Panel(given, slopes, first, torch.tensor(scale), factor=FACTOR, **rest), [memory, room]


def no_panel(rows: int, columns: int) -> Panel:
    return Panel(torch.empty(rows, columns), None, 0, torch.ones(()))


def untouched(memory: Tensor, layout: tuple[int, int, int, int]) -> None:
    """Require that what lies around the rows is as it was."""
    rows, columns, gap, before = layout
    assert memory[:before].isnan().all()
    assert memory[before:].view(rows, columns + gap)[:, columns:].isnan().all()


def far(rows: Tensor) -> Tensor:
    """Put three rows of numbers so far apart that the last begins past 2^31."""
    scores = virtual(3 * FAR, torch.float32).view(3, FAR)[:, : rows.shape[1]]
    return scores.copy_(rows)


def allowed(dtype: torch.dtype, scale: float) -> float:
    """The relative error of slopes: storage, and the exponential's of what a scale makes of roundings."""
    return UNIT[dtype] + 4e-6 * (1 + abs(scale))
