"""Who takes part in a loss, and whether all of them call it alike."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import in_transform, outside_transforms

MODES = ("gather", "ring")
UNTRACED = "ranks exchange what no graph holds"  # why torch.compile breaks its graph at a loss across ranks

T = TypeVar("T")

# Counts of rows, and numbers, that a loss may have: fixed, so that any two can find out they are not one.
_COUNTS = _NUMBERS = 3
_SUMMARY = 1 + _COUNTS + _NUMBERS  # what a rank tells of its call: which it is, then these
_ROUNDING = 1e-5  # relative; the exponential of one parameter may differ in its last digits between machines


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group.

    Attributes:
        group: the group, None for all processes.
        rank: this process's place in it.
        world: the number of ranks.
        mode: how the queries of one rank meet the keys of another.
    """

    group: dist.ProcessGroup | None
    rank: int
    world: int
    mode: str

    @classmethod
    def of(cls, group: dist.ProcessGroup | None, mode: str) -> Ranks | None:
        """Return the ranks of a group, None where this process has no others to talk to.

        Raises:
            ThawkitError: ``mode`` is unknown, or this process is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            checks.one_of("mode", mode, MODES)
            if group is not None:
                raise ThawkitError("group is given, but torch.distributed is not initialized")
            return None
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ThawkitError(f"group must contain this process, rank {dist.get_rank()} of all")
        if world == 1:
            checks.one_of("mode", mode, MODES)
            return None
        return cls(group, rank, world, mode)  # an unknown mode is found where all ranks hear of it, in meet

    @property
    def device(self) -> torch.device:
        """Where numbers are exchanged: of the group, as what a rank was called with may be anywhere."""
        # "cpu:gloo,cuda:nccl"
        devices = [pair.split(":")[0] for pair in dist.get_backend_config(self.group).split(",")]
        return torch.device("cpu" if "cpu" in devices else devices[0])

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors."""
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def numbers(self, x: Tensor) -> list[Tensor]:
        """Return every rank's tensor; all have one shape."""
        every = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(every, x, group=self.group)
        return every


@dataclass(frozen=True)
class Rows:
    """How many rows each rank holds of a tensor."""

    ranks: Ranks
    counts: tuple[int, ...]

    @property
    def own(self) -> int:
        """Rows of this rank."""
        return self.counts[self.ranks.rank]

    @property
    def before(self) -> int:
        """Rows of the ranks before this one."""
        return sum(self.counts[: self.ranks.rank])

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.counts)

    def times(self, views: int) -> Rows:
        """Return the counts where each row stands for several."""
        return Rows(self.ranks, tuple(views * count for count in self.counts))

    def with_more(self, others: Rows) -> Rows:
        """Return the counts where more rows follow each rank's."""
        return Rows(self.ranks, tuple(a + b for a, b in zip(self.counts, others.counts, strict=True)))


def meet(
    ranks: Ranks,
    loss: str,
    tensors: Mapping[str, Tensor | None],
    numbers: Mapping[str, Tensor | float | None],
    options: Mapping[str, Any],
    counted: Sequence[str],
    check: Callable[[], None],
) -> list[Rows]:
    """Return the rows of each tensor in ``counted`` on every rank.

    One exchange of a few numbers tells besides whether all ranks have good arguments, and alike. If not, all
    of them raise, instead of some of them waiting for the others.

    Args:
        ranks: who meets.
        loss: name of what they are to compute.
        tensors: have rows of their own on each rank; their dtypes, features and whether they get a gradient
            must agree.
        numbers: must have one value on all ranks, up to rounding: Python numbers or tensors of one element.
        options: names and switches that must agree.
        counted: which tensors' rows are returned.
        check: raises where this rank's arguments do not fit.

    Raises:
        ThawkitError: ``check`` raised on some rank, or arguments that must agree do not, or this rank is in a
            transform of ``torch.func``.
    """
    call, problem = loss, ""
    values = [0.0] * _SUMMARY
    of_tensors: dict[int, Tensor] = {}  # not read where their device would have to be waited for
    try:
        if in_transform():
            raise ThawkitError(
                f"{loss} across ranks has no form under torch.func, whose graph ranks cannot see"
            )
        checks.one_of("mode", ranks.mode, MODES)
        check()
        kinds = {
            **{name: _kind(x) for name, x in tensors.items()},
            **{name: _kind_of_number(x) for name, x in numbers.items()},
            **{name: _spelled(x) for name, x in options.items()},
            "mode": repr(ranks.mode),
        }
        call = f"{loss}({', '.join(f'{name}={kind}' for name, kind in kinds.items())})"
        values[0] = zlib.crc32(call.encode())
        for place, name in enumerate(counted, 1):
            values[place] = _rows(tensors[name])
        for place, x in enumerate(numbers.values(), 1 + _COUNTS):
            if isinstance(x, Tensor):
                of_tensors[place] = x.detach().reshape(())
            elif x is not None:
                values[place] = float(x)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        problem = _said(error)
    every = _exchange(ranks, call, problem, values, of_tensors)
    for place, name in enumerate(numbers, 1 + _COUNTS):
        found = [other[place] for other in every]
        if not _alike(found):
            came = "; ".join(f"rank {rank}: {x:.9g}" for rank, x in enumerate(found))
            raise ThawkitError(f"{name} must be the same on all ranks, got {came}")
    return [Rows(ranks, tuple(int(other[place]) for other in every)) for place in range(1, 1 + len(counted))]


def prepared(group: dist.ProcessGroup | None, mode: str | None, prepare: Callable[[], T]) -> T:
    """Return what ``prepare`` makes of the arguments of a loss before its ranks meet.

    If it raises, this rank goes to the meeting nevertheless, so that the error is raised on all of them.
    Where there is no meeting, ``mode`` is None.
    """
    return prepare() if mode is None else _prepared(group, mode, prepare)


@torch.compiler.disable(reason=UNTRACED)
def _prepared(group: dist.ProcessGroup | None, mode: str, prepare: Callable[[], T]) -> T:
    ranks = Ranks.of(group, mode)
    try:
        return prepare()
    except Exception as error:
        if ranks is not None:
            _exchange(ranks, "", _said(error), [0.0] * _SUMMARY, {})
        raise


def agree(ranks: Ranks, problem: str) -> None:
    """Raise on all ranks if one of them has a problem."""
    found = ranks.numbers(torch.tensor([float(bool(problem))], device=ranks.device))
    if any(torch.cat(found).tolist()):
        raise ThawkitError(_complaint(ranks, problem, ""))


def _exchange(
    ranks: Ranks, call: str, problem: str, values: list[float], of_tensors: Mapping[int, Tensor]
) -> list[list[float]]:
    """Return the numbers of every rank; the first is that of the call, and must be the same."""
    if problem:
        values, of_tensors = [-1.0, *values[1:]], {}
    with outside_transforms():
        summary = torch.tensor(values, dtype=torch.float64, device=ranks.device)
        for place, x in of_tensors.items():
            summary[place] = x
        every = torch.stack(ranks.numbers(summary)).tolist()
    if problem or any(other[0] != values[0] for other in every):
        raise ThawkitError(_complaint(ranks, problem, call))
    return every


def _complaint(ranks: Ranks, problem: str, call: str) -> str:
    said: list[Any] = [None] * ranks.world
    with outside_transforms():
        dist.all_gather_object(said, (problem, call), group=ranks.group)
    problems = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(said) if text]
    if problems:
        return problem or "; ".join(problems)
    calls = "; ".join(f"rank {rank}: {text}" for rank, (_, text) in enumerate(said))
    return f"all ranks must call the same loss with arguments of one kind, got {calls}"


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ThawkitError) else f"{type(error).__name__}: {error}"


def _alike(found: list[float]) -> bool:
    """Whether numbers are one up to rounding, which may differ between machines."""
    return all(math.isnan(x) for x in found) or all(
        math.isclose(x, found[0], rel_tol=_ROUNDING) for x in found
    )


def _rows(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[0]


def _kind(x: Tensor | None) -> str:
    """What must agree of a tensor: all but its rows, how many others each row has of its own, its values."""
    if x is None:
        return "None"
    shape: list[object] = ["rows", *["any"] * (x.dim() - 2), *x.shape[1:][-1:]][: x.dim()]
    device = [] if x.is_cpu else [x.device.type]
    gradient = ["gradient"] if _has_gradient(x) else []
    # labels are exchanged as int64, whatever they are
    name = str(x.dtype).removeprefix("torch.") if x.is_floating_point() else "integers"
    return f"{name}[{', '.join(map(str, shape + device + gradient))}]"


def _kind_of_number(x: Tensor | float | None) -> str:
    """What must agree of a number besides its value; gradients are exchanged in its own dtype."""
    if x is None:
        return "None"
    if isinstance(x, Tensor) and _has_gradient(x):
        return f"{str(x.dtype).removeprefix('torch.')} number with gradient"
    return "number"


def _has_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _spelled(x: Any) -> str:
    return repr(tuple(x)) if isinstance(x, list | tuple) else repr(x)
