"""What is installed: the package and no more, small, and bound to no library that a wheel cannot ask for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch  # noqa: F401  (brings the OpenMP that the compiled module shares)

from tests.packaging import contents
from thawkit import _C

MODULE = Path(_C.__file__)


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here")
    return path


def cuobjdump() -> str:
    """CUDA's tool, of a toolkit or of triton's wheel."""
    if path := shutil.which("cuobjdump"):
        return path
    spec = importlib.util.find_spec("triton")
    for package in (spec and spec.submodule_search_locations) or []:
        path = Path(package) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    pytest.skip("no cuobjdump, neither of a CUDA toolkit nor of triton's wheel")


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """The files of an installed wheel by their paths in it."""
    distribution = importlib.metadata.distribution("thawkit")
    recorded = {str(path): Path(path.locate()) for path in distribution.files or []}
    if "thawkit/__init__.py" not in recorded:
        pytest.skip(
            "thawkit is installed in place (pip install -e), so there is no wheel's content to look at"
        )
    return {
        name: path
        for name, path in recorded.items()
        if name.startswith("thawkit/") and "__pycache__" not in path.parts
    }


def test_the_package_is_all_that_is_installed(files):
    assert not contents.wrong_names(files)


def test_it_is_small(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, path in files.items():
            wheel.write(path, name)
    assert (tmp_path / "wheel.zip").stat().st_size <= contents.MOST_BYTES


def test_the_compiled_module_needs_no_library_of_torch_or_cuda():
    tool("readelf")
    assert not contents.wrong_linking(MODULE)


def test_the_compiled_module_gives_nothing_away_but_its_entry():
    tool("nm")
    assert contents.exported(MODULE) == {"PyInit__C"}


@pytest.mark.skipif(not _C.has_cuda, reason="no CUDA compiler was found when thawkit was built")
def test_machine_code_for_every_architecture():
    text = (contents.ROOT / "CMakeLists.txt").read_text()
    arm, x86 = (set(found.split()) for found in re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([\d ]+)\)", text))
    wanted = {f"sm_{architecture}" for architecture in (arm if "aarch64" in MODULE.name else x86)}
    assert contents.cubins(MODULE, cuobjdump()) == wanted


def test_a_wheel_that_is_wrong_is_told_so(tmp_path):
    """The check that the wheels' builder runs, on one with a test in it, a file less, and no module."""
    names = contents.sources() - {"thawkit/py.typed"} | {"thawkit/conftest.py"}
    with zipfile.ZipFile(tmp_path / "thawkit.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    done = subprocess.run(
        [sys.executable, "-m", "tests.packaging.contents", tmp_path / "thawkit.whl"],
        cwd=contents.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = {line.split(": ", 1)[1] for line in done.stdout.splitlines()}
    assert said == {
        "expected one compiled module, got none",
        "lacks thawkit/py.typed",
        "holds thawkit/conftest.py",
        "holds thawkit/conftest.py, which is for building and testing",
    }


def test_a_wheel_of_everything_and_a_module_is_right(tmp_path):
    tool("readelf")
    module = tmp_path / MODULE.name  # without what a build for debugging adds
    subprocess.run([tool("strip"), "--strip-debug", "-o", module, MODULE], check=True)
    with zipfile.ZipFile(tmp_path / "thawkit.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in contents.sources():
            wheel.writestr(name, "")
        wheel.write(module, f"thawkit/{module.name}")
        wheel.writestr("thawkit-0.1.0.dist-info/RECORD", "")
    wrong = contents.wrong_wheel(tmp_path / "thawkit.whl")
    assert wrong == ([] if _C.has_cuda else [f"thawkit/{module.name} carries no CUDA code"])
