"""Build the arena for this machine and, with a cross compiler, a server of the CPU kernels for aarch64."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

COMPILER, EMULATORS = "aarch64-linux-gnu-g++", ("qemu-aarch64", "qemu-aarch64-static")
KERNELS = ("pairwise", "margin", "focal", "frozen")

# As CMakeLists.txt has them; exceptions are how pybind11's stand-in says that an argument is wrong.
_ISA = [
    *("-O3", "-DTHAWKIT_ISA=baseline", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-ignored-attributes", "-Werror"),
]


def emulator() -> str:
    """Return the command that runs a program for aarch64, or an empty string."""
    return next((name for name in EMULATORS if shutil.which(name)), "")


def missing() -> str:
    """Return what is not there that the tests need; empty where all is."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "it is for Linux on x86-64, where the kernels of aarch64 are not the ones that run"
    for tool in (COMPILER, "g++"):
        if not shutil.which(tool):
            return f"no {tool}"
    return "" if emulator() else f"no {' and no '.join(EMULATORS)}"


def arena(folder: Path) -> Path:
    """Return the library to preload, built in ``folder`` unless it is there."""
    return _made(
        folder,
        "arena.so",
        ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-fno-builtin", "-Wall", "-Werror"],
        [HERE / "arena.cpp"],
    )


def server(folder: Path) -> Path:
    """Return the program that serves the kernels of aarch64, built in ``folder`` unless it is there."""
    common = [COMPILER, "-std=c++17", "-fopenmp", f"-I{CSRC}"]
    units = [
        _made(folder, f"{name}.o", [*common, *_ISA, "-c"], [CSRC / "cpu" / f"{name}.cpp"]) for name in KERNELS
    ]
    bindings = [*common, "-O1", "-Wall", "-Werror", f"-I{HERE / 'server'}", "-c"]
    others = CSRC / "module.cpp", CSRC / "cpu" / "dispatch.cpp", HERE / "server" / "main.cpp"
    units += [_made(folder, f"{source.stem}.o", bindings, [source]) for source in others]
    return _made(folder, "server", [COMPILER, "-fopenmp", "-static"], units)


def _made(folder: Path, name: str, command: list[str], sources: list[Path]) -> Path:
    """Return what the command makes of the sources, under a name that tells these and all headers."""
    headers = [path for place in (CSRC, HERE) for path in sorted(place.rglob("*.h"))]
    content = b"\0".join([*map(str.encode, command), *(path.read_bytes() for path in [*sources, *headers])])
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}-{name}"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.partial")  # a nested session may be at it
        done = subprocess.run(
            [*command, *map(str, sources), "-o", str(partial)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        partial.rename(path)
    return path
