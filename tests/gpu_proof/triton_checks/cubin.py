"""What compiled kernels need and do, read back from their cubins with Triton's own tools."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import triton
from triton.backends.nvidia.compiler import sm_arch_from_capability

from tests.gpu_proof.triton_checks.architectures import blocks_per_multiprocessor

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([A-Z0-9_.]*)", re.MULTILINE
)
_BYTES = 16  # of an instruction
_TENSOR_CORE = re.compile(r"HMMA|HGMMA|UTCHMMA|QGMMA|UTCQMMA")

Instructions = list[tuple[str, str]]
"""Each one's name and the rest of its opcode."""


def _output(tool: str, content: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [_TOOLS / tool, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _disassembled(content: bytes, *options: str) -> Instructions:
    listing = _INSTRUCTION.findall(_output("nvdisasm", content, *options))
    assert [int(address, 16) for address, _, _ in listing] == [_BYTES * i for i in range(len(listing))]
    return [(name, rest) for _, name, rest in listing]


def code(cubin: bytes) -> bytes:
    """Return the machine code of the one kernel in an ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # of each section: name, kind, flags, address, offset, size
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + i * size) for i in range(count)]
    first_name = sections[names][4]
    (found,) = (s for s in sections if cubin.startswith(b".text.", first_name + s[0]))
    return cubin[found[4] : found[4] + found[5]]


def instructions(cubins: Iterable[bytes], architecture: int) -> dict[bytes, Instructions]:
    """Disassemble many as one: nvdisasm takes a third of a second to start, and little for a kernel."""
    codes = {cubin: code(cubin) for cubin in cubins}
    kind = sm_arch_from_capability(architecture).replace("sm_", "SM")
    listing = iter(_disassembled(b"".join(codes.values()), "--binary", kind))
    found = {cubin: list(islice(listing, len(text) // _BYTES)) for cubin, text in codes.items()}
    assert not any(listing), "more instructions than there is code"
    shortest = min(codes, key=lambda cubin: len(codes[cubin]))
    alone = _disassembled(shortest, "--print-code", "--no-dataflow")
    assert found[shortest] == alone, "a kernel reads otherwise among others"
    return found


def _resources(kernel: Any, found: Instructions, architecture: int) -> dict[str, Any]:
    usage = _output("cuobjdump", kernel.asm["cubin"], "--dump-resource-usage")
    header = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert header is not None, usage
    registers, stack, _, local = map(int, header.groups())
    names = Counter(name for name, _ in found)
    wide = sum(name in ("LDG", "LDGSTS", "LD") and ".128" in rest for name, rest in found)
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return {
        "registers": registers,
        "stack": stack + local + names["LDL"] + names["STL"],
        "shared": shared,
        "warps": warps,
        "blocks": blocks_per_multiprocessor(architecture, registers, warps, shared),
        "tensor_core": sorted({name for name in names if _TENSOR_CORE.fullmatch(name)}),
        "loads_of_128_bits": wide + names["UTMALDG"],
        "instructions": len(found),
    }


def resources(kernels: Mapping[str, Any], architecture: int) -> dict[str, dict[str, Any]]:
    """Return of each its registers, stack, shared memory, occupancy, and counts of telling instructions."""
    found = instructions((kernel.asm["cubin"] for kernel in kernels.values()), architecture)
    return {
        name: _resources(kernel, found[kernel.asm["cubin"]], architecture) for name, kernel in kernels.items()
    }
