"""Compile every configuration of every family for one architecture and print what came out, as JSON.

``python -m tests.gpu_proof.triton_checks.compile_all 90`` in a process of its own, in which kernels are not
interpreted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.triton_checks.cubin import resources
from tests.gpu_proof.triton_checks.fake_driver import compiling_for


def compile_all(architecture: int) -> dict[str, dict[str, Any]]:
    """Return the resources of each kernel by ``family: configuration: kernel number``."""
    found: dict[str, Any] = {}
    for family in FAMILIES.values():
        kernels = family.load()
        for name, launch in family.configurations.items():
            with compiling_for(architecture) as compiled:
                launch(kernels)
            for number, kernel in enumerate(compiled):
                found[f"{family.name}: {name}: {kernel.name} {number}"] = kernel
    return resources(found, architecture)


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1]))))
