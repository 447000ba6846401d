"""The proofs' checks on a device: tensors are copied there for each launch of a kernel, and back after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import thawkit
from tests.gpu_proof.cuda_host.host import glue
from thawkit.ops import _library

_ALIGNMENT = 256  # of what CUDA's allocator returns, so that a tensor lies on the device as it lies here


class Copies:
    """The device's copies of the tensors whose addresses a launch is given."""

    def __init__(self, device: torch.device, address: Callable[[Tensor | None], int]) -> None:
        self.device, self.address = device, address
        self._pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def pointer(self, x: Tensor | None) -> int:
        """Return the address of a copy of all that lies between the first and the last element."""
        if x is None or not x.numel():
            return 0
        here = _bytes_of(x)
        place = here.data_ptr(), here.numel()  # an output may be an input
        if place not in self._pairs:
            self._pairs[place] = here, self._copy(here)
        return self.address(self._pairs[place][1])

    def _copy(self, here: Tensor) -> Tensor:
        memory = torch.empty(here.numel() + 2 * _ALIGNMENT, dtype=torch.uint8, device=self.device)
        offset = (here.data_ptr() - memory.data_ptr()) % _ALIGNMENT
        return memory[offset : offset + here.numel()].copy_(here)

    def back(self) -> None:
        """Copy what the launch wrote, and forget the copies."""
        for here, there in self._pairs.values():
            here.copy_(there)
        self._pairs.clear()


def _bytes_of(x: Tensor) -> Tensor:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    dense = x.detach().as_strided((extent,), (1,))
    return dense.view(torch.uint8)


class Launches:
    """A compiled module whose functions bring back what they wrote."""

    def __init__(self, module: ModuleType, copies: Copies) -> None:
        self._module, self._copies = module, copies

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not name.endswith("_cuda"):
            return found

        def launch(*arguments: Any) -> None:
            found(*arguments)
            self._copies.back()

        return launch


@contextlib.contextmanager
def running(
    module: ModuleType, copies: Copies, stream: Callable[[], int] = _library.stream
) -> Iterator[None]:
    """Let the CUDA glue of ``thawkit.ops`` take CPU tensors and run the module's kernels on the device."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(thawkit, "_C", Launches(module, copies)))
        stack.enter_context(patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()))
        for part in glue():
            stack.enter_context(patch.object(part, "pointer", copies.pointer))
            stack.enter_context(patch.object(part, "stream", stream))
        yield


class MadeOn(TorchFunctionMode):
    """What torch's factories make comes to a device; random numbers stay those of the CPU's generator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _device_constructors() and isinstance(out, Tensor):
            return out.to(self.device)
        return out
