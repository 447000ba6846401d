"""The extension whose CUDA kernels run on the CPU, in place of ``thawkit._C`` while it is asked for."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import thawkit._C
import torch
from torch import Tensor

from thawkit.ops import _library

_ORDERS = {"numbered": 0, "reversed": 1, "shuffled": 2}
_RTLD_LAZY = 1
_STREAM = 0x5EED  # not the default one


class Counters(ctypes.Structure):
    """What kernels did; ``host.h`` says what each number is."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("load_requests", "load_sectors", "ideal_load_sectors"),
            *("store_requests", "store_sectors", "ideal_store_sectors"),
            *("shared_requests", "shared_wavefronts", "ideal_shared_wavefronts"),
            *("distinct_sectors_read", "distinct_sectors_written", "transcendentals"),
        )
    ]


class Symbol(NamedTuple):
    """A symbol of a library: its address, and its size in bytes."""

    name: str
    address: int
    size: int


class Host:
    """A built extension, loaded."""

    def __init__(self, path: Path):
        self.path = path
        self.module = _load(path)
        self.library = ctypes.CDLL(str(path))
        self.library.cuda_host_base.restype = ctypes.c_void_p
        self.library.cuda_host_counters.restype = ctypes.POINTER(Counters)
        self.library.cuda_host_stream(ctypes.c_void_p(_STREAM))
        self._watch_shared_memory()

    @contextlib.contextmanager
    def running(
        self, order: str = "shuffled", seed: int = 0, blocks: Sequence[int] | None = None, count: bool = False
    ) -> Iterator[None]:
        """Let the CUDA glue of ``thawkit.ops`` take CPU tensors, and call these kernels.

        Args:
            order: in which blocks and threads run: numbered, reversed, or shuffled by the seed.
            seed: of the shuffling.
            blocks: numbers of the blocks to run of a grid; None: all.
            count: whether :meth:`counters` are to be kept.

        Raises:
            RuntimeError: from a launch that did what it must not, with the place in the source.
        """
        chosen = None if blocks is None else (ctypes.c_uint32 * len(blocks))(*blocks)
        self.library.cuda_host_order(_ORDERS[order], seed)
        self.library.cuda_host_choose_blocks(chosen, ctypes.c_uint64(len(blocks or ())))
        self.library.cuda_host_count(count)
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(thawkit, "_C", self.module))
            stack.enter_context(patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()))
            for part in glue():
                stack.enter_context(patch.object(part, "pointer", self._pointer))
                stack.enter_context(patch.object(part, "stream", self.stream))
            stack.enter_context(_poisoned_memory())
            try:
                yield
            except RuntimeError as error:
                raise RuntimeError(self._with_places(str(error))) from None
            finally:
                self.library.cuda_host_forget_buffers()
                self.library.cuda_host_choose_blocks(None, ctypes.c_uint64(0))

    @staticmethod
    def stream() -> int:
        """The handle of the stream that every launch is to be on."""
        return _STREAM

    @property
    def counters(self) -> Counters:
        """What the launches of the last ``running(count=True)`` did."""
        return self.library.cuda_host_counters().contents

    def _pointer(self, x: Tensor | None) -> int:
        address = _library.pointer(x)
        if x is not None and address:
            extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            name = f"the tensor {tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}".encode()
            self._watch(name, address, extent * x.element_size())
        return address

    def _watch(self, name: bytes, address: int, size: int, shared: bool = False, kernel: int = 0) -> None:
        self.library.cuda_host_watch(
            name, ctypes.c_void_p(address), ctypes.c_uint64(size), shared, ctypes.c_void_p(kernel)
        )

    def _watch_shared_memory(self) -> None:
        """A kernel's shared arrays are static variables of its function, which may use no other's."""
        base = self.library.cuda_host_base()
        symbols = list(_symbols(self.path))
        kernels = {symbol.name: base + symbol.address for symbol in symbols}
        for symbol in symbols:
            inside = re.fullmatch(r"_Z(Z.*)E\d+([A-Za-z_]+)(_\d+)?", symbol.name)
            if inside and symbol.size:
                kernel = kernels.get("_Z" + inside[1][1:], 0)
                name = f"shared memory '{inside[2]}'".encode()
                self._watch(name, base + symbol.address, symbol.size, True, kernel)

    def _with_places(self, message: str) -> str:
        def place(match: re.Match) -> str:
            command = ["addr2line", "-i", "-s", "-e", str(self.path), match[1]]
            lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
            return " at " + ", called at ".join(re.sub(r" \(.*", "", line) for line in lines if line)

        return re.sub(r" \[at (0x[0-9a-f]+)\]", place, message)


def _load(path: Path) -> ModuleType:
    name = f"{path.stem}._C"  # of its own: pybind11 gives the module back that it made for a name
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    flags = sys.getdlopenflags()
    sys.setdlopenflags(_RTLD_LAZY)
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        assert module.__file__ == str(path)
    finally:
        sys.setdlopenflags(flags)
    return module


def glue() -> list[ModuleType]:
    """The modules that hand tensors to CUDA kernels."""
    ours = (name for name in sys.modules if name.startswith("thawkit.ops."))
    return [sys.modules[name] for name in ours if re.fullmatch(r"thawkit\.ops\.\w+\.cuda(_\w+)?", name)]


def _symbols(path: Path) -> Iterator[Symbol]:
    """What the library has of the namespace of the kernels."""
    command = ["nm", "-S", "--defined-only", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for address, size, name in re.findall(r"^(\w+) (\w+) \w (\w*thawkit4cuda\S*)$", listing, re.MULTILINE):
        yield Symbol(name, int(address, 16), int(size, 16))


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, or with the largest number that an integer type has."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
