"""What programs do to memory: accesses outside of every argument, races between programs, bytes moved.

The interpreter reads and writes whatever an address holds, and runs programs one after the other, so that it
sees neither. Here every access is looked up among the tensors that the kernel was given, and each element
remembers the programs that read and wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

_NOBODY = -1
_SECTOR = 32  # bytes that a GPU fetches at least


class OutOfBounds(IndexError):
    """A program touches an element of no argument."""


class Race(RuntimeError):
    """What a program reads or writes depends on when another one runs."""


@dataclass
class Traffic:
    """What a launch moves and computes."""

    loaded: int = 0  # bytes that programs ask for
    stored: int = 0
    sectors: set[int] = field(default_factory=set)
    flops: int = 0  # of tile products
    operations: int = 0  # other sums, products, quotients and comparisons of floats
    transcendentals: int = 0

    @property
    def unique(self) -> int:
        """Bytes that memory has to give or take at least once."""
        return _SECTOR * len(self.sectors)


class Region:
    """One argument's memory, and which programs touched each element."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.size = name, tensor.element_size()
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        self.start = tensor.data_ptr()
        self.end = self.start + extent * self.size
        self._shadow: dict[str, np.ndarray] = {}

    def seen(self, what: str) -> np.ndarray:
        """Return the program that last did something to each element, -1 for none."""
        if what not in self._shadow:
            self._shadow[what] = np.full((self.end - self.start) // self.size, _NOBODY, np.int32)
        return self._shadow[what]


class Memory:
    """The arguments of one launch after the other, and checks of every access to them."""

    def __init__(self, races: bool) -> None:
        self.races, self.traffic = races, Traffic()
        self.program = 0
        self._regions: list[Region] = []

    def begin(self, arguments: dict[str, object]) -> None:
        """Forget the last launch and take the tensors among a kernel's arguments."""
        regions: dict[tuple[int, int], Region] = {}
        for name, x in arguments.items():
            if isinstance(x, torch.Tensor) and x.numel():
                region = Region(name, x)
                regions.setdefault((region.start, region.end), region)
        self._regions = list(regions.values())

    def loads(self, addresses: np.ndarray, mask: np.ndarray) -> None:
        """Check a load."""
        for region, index, sectors in self._find(addresses, mask, "load"):
            self.traffic.loaded += index.size * region.size
            self.traffic.sectors.update(sectors)
            if self.races:
                self._refuse(region, index, "loads", ("store", "atomic"))
                first = region.seen("load")
                again = (first[index] != _NOBODY) & (first[index] != self.program)
                region.seen("another load")[index[again]] = self.program
                first[index[~again]] = self.program

    def stores(self, addresses: np.ndarray, mask: np.ndarray, atomic: bool = False) -> None:
        """Check a store or an atomic operation."""
        for region, index, sectors in self._find(addresses, mask, "store"):
            self.traffic.stored += index.size * region.size
            self.traffic.sectors.update(sectors)
            if not self.races:
                continue
            if not atomic and np.unique(index).size != index.size:
                raise Race(f"program {self.program} stores twice to one element of {region.name} at once")
            others = ("store", "load", "another load") + (() if atomic else ("atomic",))
            self._refuse(region, index, "stores to", others)
            region.seen("atomic" if atomic else "store")[index] = self.program

    def _refuse(self, region: Region, index: np.ndarray, verb: str, others: tuple[str, ...]) -> None:
        for what in others:
            before = region.seen(what)[index]
            clash = (before != _NOBODY) & (before != self.program)
            if clash.any():
                raise Race(
                    f"program {self.program} {verb} {region.name}[{index[clash][0]}], "
                    f"to which program {before[clash][0]} did a {what}"
                )

    def _find(
        self, addresses: np.ndarray, mask: np.ndarray, what: str
    ) -> Iterator[tuple[Region, np.ndarray, list[int]]]:
        wanted = addresses[np.broadcast_to(mask, addresses.shape).astype(bool)].ravel()
        left = np.ones(wanted.size, bool)
        for region in self._regions:
            here = left & (wanted >= region.start) & (wanted < region.end)
            if here.any():
                left &= ~here
                offset = wanted[here] - np.uint64(region.start)
                yield (
                    region,
                    (offset // np.uint64(region.size)).astype(np.int64),
                    np.unique(wanted[here] // np.uint64(_SECTOR)).tolist(),
                )
        if left.any():
            raise OutOfBounds(self._where(what, int(wanted[left][0]), int(left.sum())))

    def _where(self, what: str, address: int, count: int) -> str:
        if not self._regions:
            return f"{what}: program {self.program} touches memory, but no tensor was given"
        near = min(self._regions, key=lambda r: min(abs(address - r.start), abs(address - r.end)))
        past, edge = (near.end, "end") if address >= near.end else (near.start, "start")
        return (
            f"{what}: program {self.program} touches {count} element(s) of no argument, the first one "
            f"{(address - past) // near.size:+d} from the {edge} of {near.name}"
        )
