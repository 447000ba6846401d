"""What each compiled kernel may need, in a file.

``python -m tests.gpu_proof.triton_checks.budget`` writes it: where a change is meant, and to be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton

from tests.gpu_proof.triton_checks.architectures import ARCHITECTURES
from tests.gpu_proof.triton_checks.compiled import compiled

_FILE = Path(__file__).parents[1] / "budgets" / "triton.json"
_AT_MOST = "registers", "shared"
_AT_LEAST = "blocks", "loads_of_128_bits"


def version() -> str:
    """Return the part of Triton's version on which its code depends."""
    return ".".join(triton.__version__.split(".")[:2])


def budgets() -> dict[str, Any]:
    """Return the file: the version of Triton it is for, and the numbers by architecture and kernel."""
    read: dict[str, Any] = json.loads(_FILE.read_text())
    return read


def unsound(needs: Mapping[str, Any], multiplies: bool, scattered: bool = False) -> list[str]:
    """Return what no kernel may do, whatever the budget says: see :class:`Family`."""
    found = []
    if needs["stack"]:
        found.append(f"uses {needs['stack']} bytes or instructions of local memory")
    if not needs["blocks"]:
        found.append(f"needs {needs['shared']} bytes of shared memory, more than a block may have")
    if multiplies and not needs["tensor_core"]:
        found.append("multiplies without tensor cores")
    if not needs["loads_of_128_bits"] and not scattered:
        found.append("has no loads of 128 bits")
    return found


def over(needs: Mapping[str, Any], budget: Mapping[str, Any]) -> list[str]:
    """Return where a kernel needs more or does less than its budget."""
    return [
        *(f"{n} {needs[n]}, at most {budget[n]}" for n in _AT_MOST if needs[n] > budget[n]),
        *(f"{n} {needs[n]}, at least {budget[n]}" for n in _AT_LEAST if needs[n] < budget[n]),
        *(f"{op} is gone" for op in budget["tensor_core"] if op not in needs["tensor_core"]),
    ]


def write() -> None:
    """Make what the kernels need now their budget."""
    names = *_AT_MOST, *_AT_LEAST, "tensor_core"
    architectures = [
        f'  "{architecture}": {{\n'
        + ",\n".join(
            f"   {json.dumps(kernel)}: {json.dumps({name: needs[name] for name in names})}"
            for kernel, needs in compiled(architecture).items()
        )
        + "\n  }"
        for architecture in ARCHITECTURES
    ]
    kernels = ",\n".join(architectures)
    _FILE.write_text(f'{{\n "triton": "{version()}",\n "architectures": {{\n{kernels}\n }}\n}}\n')


if __name__ == "__main__":
    write()
