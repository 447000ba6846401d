"""What a built thawkit may hold, be it a wheel or what is installed of one.

``python -m tests.packaging.contents WHEEL...`` checks wheels and exits with status 1 where one is wrong.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_BYTES = 15 << 20

# What the C and C++ runtimes of every Linux give, and OpenMP, of which torch's copy is to be the only one.
_LIBRARIES = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libgomp|ld-linux-(x86-64|aarch64))\.so(\.\d+)*"
)
_FOREIGN = re.compile(r"(^|/)(tests?|bench|csrc|build|conftest\.py)(/|$)|\.(cpp|cu|cuh|h|o|a|pyc|cubin)$")


def sources() -> set[str]:
    """Return the files that a wheel is to hold besides the compiled module, as paths in it."""
    of_package = {"thawkit": ROOT / "python" / "thawkit", "thawkit/kernels": ROOT / "kernels"}
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in of_package.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wrong_names(names: Iterable[str]) -> list[str]:
    """Return what is wrong with the names of a package's files, those of its metadata left out."""
    names = set(names)
    compiled = {name for name in names if re.fullmatch(r"thawkit/_C\.[\w.-]+\.so", name)}
    problems = (
        [] if len(compiled) == 1 else [f"expected one compiled module, got {sorted(compiled) or 'none'}"]
    )
    problems += [f"lacks {name}" for name in sorted(sources() - names)]
    problems += [f"holds {name}" for name in sorted(names - sources() - compiled)]
    problems += [
        f"holds {name}, which is for building and testing" for name in sorted(filter(_FOREIGN.search, names))
    ]
    return problems


def wrong_linking(module: Path) -> list[str]:
    """Return what is wrong with the libraries that the compiled module asks for, by readelf."""
    done = subprocess.run(
        ["readelf", "--wide", "--dynamic", module], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout)
    problems = [f"needs {name}" for name in needed if not _LIBRARIES.fullmatch(name)]
    paths = re.findall(r"\((RPATH|RUNPATH)\).*\[(.+)\]", done.stdout)
    return problems + [f"has the {kind} {path}" for kind, path in paths]


def exported(module: Path) -> set[str]:
    """Return the symbols that the compiled module gives to others, but for the library's templates, by nm."""
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", module]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    symbols = [line.split()[:2] for line in done.stdout.splitlines()]
    return {name for name, kind in symbols if kind in "TDBR"}


def cubins(module: Path, cuobjdump: str) -> set[str]:
    """Return the architectures whose machine code the compiled module carries."""
    done = subprocess.run([cuobjdump, "--list-elf", module], capture_output=True, text=True, check=True)
    return set(re.findall(r"\.(sm_\d+)", done.stdout))


def has_cuda_code(module: Path) -> bool:
    """Return whether the compiled module carries machine code of a GPU, by readelf."""
    done = subprocess.run(
        ["readelf", "--wide", "--sections", module], capture_output=True, text=True, check=True
    )
    return ".nv_fatbin" in done.stdout


def wrong_wheel(path: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    problems = []
    if (size := path.stat().st_size) > MOST_BYTES:
        problems.append(f"has {size / 2**20:.1f} MiB, more than {MOST_BYTES >> 20}")
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith("/")]
        problems += wrong_names(names)
        for name in names:
            if name.endswith(".so") and shutil.which("readelf"):
                module = Path(wheel.extract(name, folder))
                problems += wrong_linking(module)
                problems += [] if has_cuda_code(module) else [f"{name} carries no CUDA code"]
    return problems


def main(paths: list[str]) -> int:
    """Say what is wrong with each wheel."""
    every = [(path, problem) for path in paths for problem in wrong_wheel(Path(path))]
    for path, problem in every:
        print(f"{path}: {problem}")
    return 1 if every or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
