"""CUDA kernels compiled for a GPU, without one, and what the binaries say of themselves."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from thawkit import _C

from .cuda_host.build import ROOT, SOURCES, digest, headers

ARCHITECTURES = (75, 80, 87, 89, 90, 100, 120)
THREADS = 256  # of every kernel's block
BUDGET = Path(__file__).parent / "budgets" / "cuda.json"

# name of a function in csrc/cuda -> name of the kernel in thawkit._C
KERNEL_OF = {
    "focal_kernel": "sigmoid_focal",
    "focal_options_kernel": "sigmoid_focal",
    "pack_kernel": "pack",
    "pack_bytes_kernel": "pack",
    "masked_kernel": "masked",
    "channel_sum_kernel": "channel_sum",
    "channel_affine_kernel": "channel_affine",
    "channel_affine_backward_kernel": "channel_affine_backward",
    "max_pool_kernel": "max_pool",
    "unpool_kernel": "max_pool_backward",
    "quantize_kernel": "quantize",
    "dequantize_kernel": "dequantize",
    "softmax_focal_kernel": "softmax_focal",
    "softmax_kernel": "softmax_panel",
    "column_sums_kernel": "column_sums_panel",
    "clip_kernel": "clip_panel",
    "sigmoid_kernel": "sigmoid_panel",
    "tile_kernel": "mmd_tile",
    "rates_kernel": "mmd_rates",
    "values_kernel": "mmd_values",
    "digits_kernel": "mmd_digits",
    "best_of_groups_kernel": "best_of_groups",
    "keys_of_groups_kernel": "keys_of_groups",
    "distances_kernel": "distances_panel",
    "all_triplets_kernel": "all_triplets_panel",
    "semihard_triplets_kernel": "semihard_triplets_panel",
    "hardest_triplet_kernel": "hardest_triplet_panel",
    "contrastive_kernel": "contrastive_panel",
}


# Bytes a block that CUDA takes for itself, and from which architecture on a binary counts them.
_RESERVED, _COUNTED_FROM = 1024, 90


class Multiprocessor(NamedTuple):
    """What a multiprocessor holds at once (CUDA C++ Programming Guide, table of compute capabilities)."""

    warps: int
    blocks: int
    shared_kib: int


HOLDS = {
    75: Multiprocessor(32, 16, 64),
    80: Multiprocessor(64, 32, 164),
    87: Multiprocessor(48, 16, 164),
    89: Multiprocessor(48, 24, 100),
    90: Multiprocessor(64, 32, 228),
    100: Multiprocessor(64, 32, 228),
    120: Multiprocessor(48, 24, 100),
}


class Resources(NamedTuple):
    """Of one function, or the worst of all instances of a template."""

    registers: int
    stack: int  # bytes a thread, spills among them
    shared: int  # bytes a block, without what CUDA reserves
    widest_load: int  # bits

    def blocks(self, architecture: int) -> int:
        """How many blocks a multiprocessor holds at once."""
        holds = HOLDS[architecture]
        a_warp = -(-max(self.registers, 1) * 32 // 256) * 256  # registers are given out in lots of 256
        by_registers = 4 * (65536 // 4 // a_warp) // (THREADS // 32)  # a quarter to each scheduler
        reserved = _RESERVED if architecture >= 80 else 0
        by_shared = holds.shared_kib * 1024 // max(1, -(-self.shared // 128) * 128 + reserved)
        return min(holds.blocks, holds.warps // (THREADS // 32), by_registers, by_shared)

    def worst(self, other: Resources) -> Resources:
        """What holds for both."""
        return Resources(*map(max, self[:3], other[:3]), min(self.widest_load, other.widest_load))


def tool(name: str) -> str | None:
    """The path of a program of CUDA's: of the toolkit's, or of triton's wheel."""
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    spec = importlib.util.find_spec("triton")
    places += [f"{place}/backends/nvidia/bin" for place in (spec and spec.submodule_search_locations) or []]
    return shutil.which(name, path=os.pathsep.join(places))


def missing_tool() -> str:
    """What is not there that compiling and reading needs; empty where all is."""
    return next((f"no {name}" for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not tool(name)), "")


@functools.cache
def compiler() -> str:
    """The release of nvcc, e.g. 13.0."""
    version = subprocess.run([str(tool("nvcc")), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", version)
    return found[1] if found else "unknown"


def compile_for(source: Path, architecture: int, folder: Path) -> Path:
    """Compile as the wheel does, with every warning an error; once for what the sources say."""
    cubin = folder / f"{source.stem}.{architecture}-{digest(source.read_text(), headers(), compiler())}.cubin"
    if cubin.exists():
        return cubin
    flags = ["-std=c++17", "-O3", "--Werror=all-warnings", f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc'}"]
    partial = cubin.with_suffix(f".{os.getpid()}")  # another process may be at it
    command = [str(tool("nvcc")), *flags, "-cubin", str(source), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return partial.rename(cubin)


def shipped(folder: Path) -> dict[int, list[Path]]:
    """The cubins that the extension holds, by architecture, put into the folder.

    Empty where it was made of other CUDA sources than these, by another compiler, or without any.
    """
    made_of, made_by = getattr(_C, "cuda_sources", ""), getattr(_C, "cuda_compiler", "")
    if made_of != _sources() or not f"{made_by}.".startswith(f"{compiler()}."):
        return {}
    _output("cuobjdump", "--extract-elf", "all", str(_C.__file__), folder=folder)
    found: dict[int, list[Path]] = {}
    for cubin in sorted(folder.glob("*.cubin")):
        found.setdefault(int(cubin.suffixes[-2].removeprefix(".sm_")), []).append(cubin)
    return found


def _sources() -> str:
    """The digest that CMakeLists.txt gives the extension of the sources that it is made of."""
    lines = [
        f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in SOURCES
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def resources(cubin: Path, architecture: int) -> dict[str, Resources]:
    """Of each template the worst that its instances take, by its name."""
    usage = _output("cuobjdump", "--dump-resource-usage", str(cubin))
    loads = _widest_loads(_output("nvdisasm", "-c", str(cubin)))
    found: dict[str, Resources] = {}
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for symbol, registers, stack, shared, local in re.findall(pattern, usage):
        reserved = _RESERVED if architecture >= _COUNTED_FROM else 0
        one = Resources(
            int(registers), int(stack) + int(local), max(0, int(shared) - reserved), loads.get(symbol, 0)
        )
        name = _name(symbol)
        found[name] = found[name].worst(one) if name in found else one
    return found


def _output(name: str, *arguments: str, folder: Path | None = None) -> str:
    command = [str(tool(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


@functools.cache  # an instance has the same symbol for every architecture
def _name(symbol: str) -> str:
    plain = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+)(<.*>)?\(", plain.replace("(anonymous namespace)", ""))
    assert found, plain
    return found[1]


def _widest_loads(assembly: str) -> dict[str, int]:
    """The widest load from global memory of each function, in bits."""
    widest: dict[str, int] = {}
    function = ""
    for line in assembly.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            function = section[1]
        if load := re.search(r"\sLDG\.E(\.[A-Z0-9.]+)?\s", line):
            bits = re.search(r"\.(?:U|S)?(8|16|64|128)\b", load[1] or "")
            widest[function] = max(widest.get(function, 0), int(bits[1]) if bits else 32)
    return widest
