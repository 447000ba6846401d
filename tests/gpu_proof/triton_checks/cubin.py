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
from typing import Any, NamedTuple

import triton
from triton.backends.nvidia.compiler import sm_arch_from_capability

from tests.gpu_proof.triton_checks.architectures import blocks_per_multiprocessor

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([A-Z0-9_.]*)", re.MULTILINE
)
_BYTES = 16  # of an instruction
_TENSOR_CORE = re.compile(r"HMMA|HGMMA|UTCHMMA|QGMMA|UTCQMMA")

_NO_BITS = 8  # the kind of a section that takes no room in the file
# of .nv.info: the form of an attribute that has a size, and attributes of functions
_SIZED, _REGISTERS, _FRAME, _STACK = 4, 0x2F, 0x11, 0x12

Instructions = list[tuple[str, str]]
"""Each one's name and the rest of its opcode."""


class Binary(NamedTuple):
    """A kernel's cubin, and what a launch adds."""

    cubin: bytes
    warps: int
    shared: int


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


def _sections(cubin: bytes) -> dict[str, bytes]:
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # of each section: name, kind, flags, address, offset, size
    fields = [struct.unpack_from("<IIQQQQ", cubin, headers + i * size) for i in range(count)]
    first_name = fields[names][4]
    texts = [cubin[first_name + f[0] : cubin.index(b"\0", first_name + f[0])].decode() for f in fields]
    contents = [b"" if f[1] == _NO_BITS else cubin[f[4] : f[4] + f[5]] for f in fields]
    return dict(zip(texts, contents, strict=True))


def code(cubin: bytes) -> bytes:
    """Return the machine code of the one kernel in an ELF file."""
    (found,) = (content for name, content in _sections(cubin).items() if name.startswith(".text."))
    return found


def _attributes(cubin: bytes) -> dict[int, int]:
    """Return what the file says of its functions, by attribute the most: cuobjdump is slow to start."""
    content, at = _sections(cubin)[".nv.info"], 0
    found: dict[int, int] = {}
    while at < len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, at)
        at += 4
        if form == _SIZED:
            if attribute in (_REGISTERS, _FRAME, _STACK):  # a function's number, and a figure
                (figure,) = struct.unpack_from("<I", content, at + 4)
                found[attribute] = max(figure, found.get(attribute, 0))
            at += size
    return found


def usage(cubin: bytes) -> tuple[int, int]:
    """Return how many registers a thread takes, and bytes of stack."""
    found = _attributes(cubin)
    return found[_REGISTERS], max(found[_FRAME], found[_STACK])


def _usage_by_cuobjdump(cubin: bytes) -> tuple[int, int]:
    said = _output("cuobjdump", cubin, "--dump-resource-usage")
    header = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert header is not None, said
    registers, stack, local = map(int, header.groups())
    return registers, stack + local


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


def _resources(kernel: Binary, found: Instructions, architecture: int) -> dict[str, Any]:
    registers, stack = usage(kernel.cubin)
    names = Counter(name for name, _ in found)
    wide = sum(name in ("LDG", "LDGSTS", "LD") and ".128" in rest for name, rest in found)
    return {
        "registers": registers,
        "stack": stack + names["LDL"] + names["STL"],
        "shared": kernel.shared,
        "warps": kernel.warps,
        "blocks": blocks_per_multiprocessor(architecture, registers, kernel.warps, kernel.shared),
        "tensor_core": sorted({name for name in names if _TENSOR_CORE.fullmatch(name)}),
        "loads_of_128_bits": wide + names["UTMALDG"],
        "instructions": len(found),
    }


def resources(kernels: Mapping[str, Binary], architecture: int) -> dict[str, dict[str, Any]]:
    """Return of each its registers, stack, shared memory, occupancy, and counts of telling instructions."""
    found = instructions((kernel.cubin for kernel in kernels.values()), architecture)
    for cubin in sorted(found, key=lambda cubin: len(found[cubin]))[:: max(1, len(found) // 4)]:
        assert usage(cubin) == _usage_by_cuobjdump(cubin), "cuobjdump says otherwise"
    return {name: _resources(kernel, found[kernel.cubin], architecture) for name, kernel in kernels.items()}
