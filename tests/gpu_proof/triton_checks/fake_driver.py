"""A driver without a GPU: kernels go through Triton's own launch path up to the cubin, and no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from tests.gpu_proof.triton_checks.architectures import ARCHITECTURES


class FakeCuda(DriverBase):
    """What Triton asks of a driver before it launches."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.utils = self

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is timed without a GPU")

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": ARCHITECTURES[self.architecture].shared_a_block,
            "max_num_regs": 65536,
            "multiprocessor_count": 1,
            "warpSize": 32,
        }


@contextmanager
def compiling_for(architecture: int) -> Iterator[list[Any]]:
    """Compile instead of launching; yield the list of what was compiled."""
    triton.runtime.driver.set_active(FakeCuda(architecture))
    compiled: list[Any] = []
    launch = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield compiled
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
