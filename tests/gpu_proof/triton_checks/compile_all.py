"""Compile every configuration of every family for some architectures and print what came out, as JSON.

``python -m tests.gpu_proof.triton_checks.compile_all 87 89`` in a process of its own, in which kernels are
not interpreted. Of several architectures the PTX is the first one's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.triton_checks.cubin import Binary, resources
from tests.gpu_proof.triton_checks.fake_driver import compiling_for


def _retargeted(ptx: str, old: int, new: int) -> str:
    line = f".target sm_{old}"
    assert ptx.count(line) == 1
    return ptx.replace(line, f".target sm_{new}")


def _code(ptx: str) -> str:
    """Return what comes before the names of files: a kernel in Triton's cache has those of another day."""
    return ptx.partition("\t.file")[0]


def _compiled(launch: Callable[[ModuleType], None], kernels: ModuleType, architecture: int) -> list[Any]:
    with compiling_for(architecture) as compiled:
        launch(kernels)
    return compiled


def _assembled(kernel: Any, old: int, new: int) -> bytes:
    """Let ptxas make another architecture's machine code of a kernel's PTX."""
    backend = CUDABackend(GPUTarget("cuda", new, 32))
    cubin: bytes = backend.make_cubin(_retargeted(kernel.asm["ptx"], old, new), {}, kernel.metadata, new)
    return cubin


def compile_all(first: int, *others: int) -> dict[int, dict[str, dict[str, Any]]]:
    """Return the resources by architecture and by ``family: configuration: kernel number``."""
    found: dict[int, dict[str, Binary]] = {architecture: {} for architecture in (first, *others)}
    for family in FAMILIES.values():
        kernels = family.load()
        shared: set[str] = set()  # what configurations begin with that were seen to share their PTX
        for name, launch in family.configurations.items():
            compiled = _compiled(launch, kernels, first)
            kind = name.replace(",", " ").split()[0]
            for other in others if kind not in shared else ():
                of_other = [_code(kernel.asm["ptx"]) for kernel in _compiled(launch, kernels, other)]
                of_first = [_retargeted(_code(kernel.asm["ptx"]), first, other) for kernel in compiled]
                assert of_other == of_first, f"sm_{other} needs a PTX of its own: {family.name}, {name}"
            shared.add(kind)
            for number, kernel in enumerate(compiled):
                place = f"{family.name}: {name}: {kernel.name} {number}"
                needs = kernel.metadata.num_warps, kernel.metadata.shared
                found[first][place] = Binary(kernel.asm["cubin"], *needs)
                for other in others:
                    found[other][place] = Binary(_assembled(kernel, first, other), *needs)
    return {architecture: resources(kernels, architecture) for architecture, kernels in found.items()}


if __name__ == "__main__":
    print(json.dumps(compile_all(*map(int, sys.argv[1:]))))
