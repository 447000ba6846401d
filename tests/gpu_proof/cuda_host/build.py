"""Build the extension ``thawkit._C`` with the CUDA kernels made for the CPU, and without the CPU's own."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# Of what the kernels are made, as CMakeLists.txt has it too.
_PATTERNS = ("cuda/*.cu", "cuda/*.cuh", "cuda/*.h", "common/*.h", "cpu/kernels.h")
SOURCES = sorted(path for pattern in _PATTERNS for path in (ROOT / "csrc").glob(pattern))
CUDA = [path for path in SOURCES if path.suffix == ".cu"]
RUNTIME = [*sorted(HERE.glob("*.cpp")), ROOT / "csrc" / "cuda" / "runtime.cpp"]

_COMMON = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
_IDENTITY = ['-DTHAWKIT_CUDA_SOURCES=""', '-DTHAWKIT_CUDA_COMPILER=""']
# At -O1 gcc leaves out stores of what calls return; vectors would hide what each lane reads.
_KERNEL = [
    *("-O2", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-ffp-contract=off"),
    *("-fsanitize=thread,bounds,signed-integer-overflow,shift", "-fno-sanitize-recover=all"),
]


def cudaheaders() -> list[Path]:
    """The folders of CUDA's headers, for the types of half precision: a toolkit's or a wheel's."""
    toolkits = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    for toolkit in [*toolkits, Path("/usr/local/cuda")]:
        if (toolkit / "include" / "nv" / "target").exists():
            return [toolkit / "include"]
    spec = importlib.util.find_spec("triton")
    for package in (spec and spec.submodule_search_locations) or []:
        include = Path(package) / "backends" / "nvidia" / "include"
        if (include / "cuda_fp16.h").exists():
            return [include, HERE / "wheel"]
    return []


def missing_tool() -> str:
    """What is not there that a build needs; empty where all is."""
    for tool in ("g++", "nm", "addr2line"):
        if not shutil.which(tool):
            return f"no {tool}"
    if not cudaheaders():
        return "no cuda_fp16.h, neither of a CUDA toolkit nor of triton's wheel"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python.h"
    return ""


class Build:
    """Objects in a folder, each compiled once; what is made of edited sources in one for this session."""

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.scratch = folder, scratch

    def library(self) -> Path:
        """Compile and link all of ``csrc/cuda`` and return the extension's path."""
        objects = [*self._frame, *self._kernels]
        path = self.folder / f"{digest(*map(str, objects))}.so"
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}")  # another process may be at it
            _link(partial, objects)
            partial.rename(path)
        return path

    def edited(self, unit: str, kernel: str, texts: dict[str, str]) -> Path:
        """Return the path of an extension of which one kernel is made of edited sources.

        Nothing else of that source is compiled, which takes half as long: its other kernels are as they were.

        Args:
            unit: the source ``csrc/cuda/<unit>.cu`` that has the kernel.
            kernel: the name of the function by which it is launched.
            texts: in place of files of ``csrc``, by their paths in it, e.g. ``cuda/common.cuh``.
        """
        name = f"cuda/{unit}.cu"
        text = texts.get(name) or (ROOT / "csrc" / name).read_text()
        head = f"const char* {kernel}("
        assert text.count(head) == 1, head
        text = text.replace(head, f"__attribute__((externally_visible)) {head}")
        unnamed = "\nnamespace {\n"
        assert text.count(unnamed) == 1, name
        # so that no name of a symbol is there twice
        texts = {**texts, name: text.replace(unnamed, "\ninline namespace edited {\n")}
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for file, content in texts.items():
                place = Path(folder) / file
                place.parent.mkdir(exist_ok=True)
                place.write_text(content)
            first = self._kernel(Path(folder) / name, ["-fwhole-program", f"-I{folder}"], repr(texts))
        path = self.scratch / f"{uuid.uuid4().hex}.so"
        # the linker takes the first of two functions of one name
        _link(path, [first, *self._frame, *self._kernels], "-Wl,-z,muldefs,--strip-debug")
        return path

    @functools.cached_property
    def _frame(self) -> list[Path]:
        objects = [self._compile(source, ["-O2", "-Wall", *_IDENTITY]) for source in RUNTIME]
        flags = ["-O0", "-g0", "-DTHAWKIT_HAS_CUDA", *_bindings()]
        return [*objects, self._compile(ROOT / "csrc" / "module.cpp", flags)]

    @functools.cached_property
    def _kernels(self) -> list[Path]:
        return [self._kernel(source) for source in CUDA]

    def _kernel(self, source: Path, places: Sequence[str] = (), edits: str = "") -> Path:
        prelude = self._prelude().with_suffix("")  # the compiler itself adds .gch where there is one
        return self._compile(source, [*places, *_KERNEL, "-include", str(prelude)], edits)

    def _prelude(self) -> Path:
        source = HERE / "prelude.h"
        path = self.folder / f"prelude-{digest(source.read_text(), *_KERNEL, headers())}.h.gch"
        header = path.with_suffix("")  # for a compiler that takes no other's memory as it was
        if not header.exists():
            header.write_text(source.read_text())
        return self._made(path, source, _KERNEL, "c++-header")

    def _compile(self, source: Path, flags: Sequence[str], edits: str = "") -> Path:
        fixed = [flag for flag in flags if not flag.startswith("-I")]
        key = digest(source.read_text(), *fixed, headers(), edits)
        path = (self.scratch if edits else self.folder) / f"{source.stem}-{key}.o"
        return self._made(path, source, [*flags, "-c"], "c++")

    def _made(self, path: Path, source: Path, flags: Sequence[str], language: str) -> Path:
        if not path.exists():
            includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", *(f"-isystem{place}" for place in cudaheaders())]
            partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            _run(["g++", *_COMMON, *flags, *includes, "-x", language, str(source), "-o", str(partial)])
            partial.rename(path)
        return path


def kept(config: pytest.Config, name: str) -> Path:
    """A folder of pytest's cache, without what is older than a week."""
    folder = Path(config.cache.mkdir(name))
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > 7 * 86400:
            path.unlink()
    return folder


@functools.cache
def _linker() -> list[str]:
    """The faster linker where there is one: every planted bug is linked, in less than half the time."""
    return ["-fuse-ld=gold"] if shutil.which("ld.gold") else []


def _bindings() -> list[str]:
    places = [
        sysconfig.get_path("include"),
        str(Path(torch.__file__).parent / "include"),
    ]  # pybind11's is there
    return [f"-isystem{place}" for place in places]


def headers() -> str:
    """A digest of all headers that CUDA sources or this folder's include."""
    files = [*sorted(HERE.glob("*.h")), *(path for path in SOURCES if path not in CUDA)]
    return digest(*(path.read_text() for path in files))


def digest(*texts: str) -> str:
    """A name for the texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _link(path: Path, objects: Sequence[Path], *flags: str) -> None:
    # What the kernels of the CPU define is missing, and only asked for when it is called.
    _run(["g++", "-shared", "-Wl,-z,lazy", *_linker(), *flags, *map(str, objects), "-o", str(path)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
