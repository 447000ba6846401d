"""What a compiled kernel needs and does, read back from its cubin with Triton's own tools."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

from tests.gpu_proof.triton_checks.architectures import blocks_per_multiprocessor

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([A-Z0-9_.]*)", re.MULTILINE
)
_TENSOR_CORE = re.compile(r"HMMA|HGMMA|UTCHMMA|QGMMA|UTCQMMA")


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


@functools.cache  # several launches may come down to one kernel
def _read(cubin: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Return what the header says, and each instruction's name and the rest of its opcode."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "--dump-resource-usage", file.name)
        code = _output("nvdisasm", "-c", "-ndf", file.name)
    return usage, _INSTRUCTION.findall(code)


def resources(kernel: Any, architecture: int) -> dict[str, Any]:
    """Return registers, stack, shared memory, occupancy, and counts of telling instructions."""
    usage, instructions = _read(kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, _, local = map(int, found.groups())
    names = Counter(name for name, _ in instructions)
    wide = sum(name in ("LDG", "LDGSTS", "LD") and ".128" in rest for name, rest in instructions)
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return {
        "registers": registers,
        "stack": stack + local + names["LDL"] + names["STL"],
        "shared": shared,
        "warps": warps,
        "blocks": blocks_per_multiprocessor(architecture, registers, warps, shared),
        "tensor_core": sorted({name for name in names if _TENSOR_CORE.fullmatch(name)}),
        "loads_of_128_bits": wide + names["UTMALDG"],
        "instructions": len(instructions),
    }
