"""Who takes part in a loss, and whether all of them call it alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks

MODES = ("gather", "ring")

_COUNTS = 3  # of rows, that a loss may ask for; fixed, so that any two losses can find out they are not one


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
    tensors: Mapping[str, Tensor | float | None],
    options: Mapping[str, Any],
    counted: Sequence[str],
    check: Callable[[], None],
) -> list[Rows]:
    """Return the rows of each tensor in ``counted`` on every rank.

    One exchange of a few numbers tells besides whether all ranks have good arguments, and alike. If not, all
    of them raise, instead of some of them waiting for the others.

    Raises:
        ThawkitError: ``check`` raised on some rank, or arguments that must agree do not.
    """
    problem = ""
    arguments = {**tensors, **options, "mode": ranks.mode}
    call = f"{loss}({', '.join(f'{name}={_kind(x)}' for name, x in arguments.items())})"
    counts = [0] * _COUNTS
    try:
        checks.one_of("mode", ranks.mode, MODES)
        check()
        counts[: len(counted)] = (_rows(tensors[name]) for name in counted)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        problem = str(error) if isinstance(error, ThawkitError) else f"{type(error).__name__}: {error}"
    here = next((x.device for x in tensors.values() if isinstance(x, Tensor)), torch.device("cpu"))
    summary = [-1 if problem else zlib.crc32(call.encode()), *counts]
    every = torch.stack(ranks.numbers(torch.tensor(summary, device=here))).tolist()
    if problem or any(other[0] != summary[0] for other in every):
        raise ThawkitError(_complaint(ranks, problem, call))
    return [Rows(ranks, tuple(other[1 + i] for other in every)) for i in range(len(counted))]


def _complaint(ranks: Ranks, problem: str, call: str) -> str:
    said: list[Any] = [None] * ranks.world
    dist.all_gather_object(said, (problem, call), group=ranks.group)
    problems = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(said) if text]
    if problems:
        return problem or "; ".join(problems)
    calls = "; ".join(f"rank {rank}: {text}" for rank, (_, text) in enumerate(said))
    return f"all ranks must call the same loss with arguments of one kind, got {calls}"


def _rows(x: Tensor | float | None) -> int:
    return x.shape[0] if isinstance(x, Tensor) else 0


def _kind(x: Any) -> str:
    """What must agree of an argument: of a tensor everything but its rows and its values."""
    if not isinstance(x, Tensor):
        return repr(x)
    shape = ", ".join(["rows", *map(str, x.shape[1:])][: x.dim()])
    gradient = ", gradient" if x.requires_grad and torch.is_grad_enabled() else ""
    return f"{str(x.dtype).removeprefix('torch.')}[{shape}{gradient}]"
