"""``import thawkit`` and ``thawkit doctor`` where something is missing: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LOSS = (
    "from thawkit.losses import functional as F; print(F.info_nce(torch.ones(2, 3), torch.ones(2, 3)).item())"
)
WITHOUT_CUDA = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
    "CUDA_VISIBLE_DEVICES": ""
}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=WITHOUT_CUDA | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def doctor(before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return python(
        f"{before}\nimport sys\nfrom thawkit.cli import main\nsys.exit(main(['doctor']))", **environment
    )


def without(module: str) -> str:
    """Code after which a package cannot be imported."""
    return f"import sys; sys.modules[{module!r}] = None"


def broken(module: str, folder: Path, error: str = "ImportError") -> dict[str, str]:
    """An environment in which importing a package fails."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(
        f"raise {error}('libnothing.so: cannot open shared object file')\n"
    )
    return {"PYTHONPATH": str(folder)}


def older(package: str, version: str, folder: Path) -> dict[str, str]:
    """An environment whose metadata say that a package has another version."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def test_import_needs_no_package_at_all():
    done = python(f"{without('torch')}; {without('triton')}; import thawkit; print(thawkit.__version__)")
    assert done.returncode == 0, done.stderr


def test_losses_need_no_triton_and_no_driver():
    done = python(f"{without('triton')}; import torch, thawkit; {LOSS}")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.6931, abs=1e-4)


def test_doctor_without_triton():
    done = doctor(without("triton"))
    assert done.returncode == 0, done.stderr
    assert "needs the package triton, which is not installed" in done.stdout


@pytest.mark.parametrize("error", ["ImportError", "OSError", "AttributeError"])
def test_doctor_with_a_triton_that_does_not_load(error, tmp_path):
    done = doctor(TRITON_INTERPRET="1", **broken("triton", tmp_path, error))
    assert done.returncode == 0, done.stderr
    assert "needs the package triton, which does not load (libnothing.so: cannot open" in done.stdout


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the system does not give huge pages to who asks for them, and to nobody else",
)
@pytest.mark.parametrize(
    ("asked", "who"),
    [("0", "large results of thawkit's kernels only; THP_MEM"), ("1", "all large tensors")],
)
def test_doctor_says_what_gets_huge_pages(asked, who):
    assert f"huge pages    {who}" in doctor(THP_MEM_ALLOC_ENABLE=asked).stdout


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")
def test_doctor_without_a_device():
    said = doctor().stdout
    assert "CUDA device   none that torch sees: " in said
    assert "no NVIDIA driver is installed (libcuda.so.1)" in said or "the driver has none for it" in said
    assert "needs a CUDA device, and torch sees none" in said


@pytest.mark.parametrize(
    ("package", "version", "floor"), [("torch", "2.10.1", ">=2.11"), ("triton", "3.5.1", ">=3.6")]
)
def test_doctor_names_a_package_that_is_too_old(package, version, floor, tmp_path):
    if package == "triton" and os.uname().machine != "x86_64":
        pytest.skip("triton is asked for on x86-64 only")
    done = doctor(**older(package, version, tmp_path))
    assert done.returncode == 1, done.stderr
    assert f"{version}, but thawkit needs {floor}" in done.stdout
    assert "CPU kernels   " in done.stdout  # and goes on


def test_doctor_of_a_torch_that_the_operators_cannot_use():
    done = doctor("import torch; del torch.library.Library")
    assert done.returncode == 1, done.stderr
    assert "the operators do not load: AttributeError: " in done.stdout


def test_doctor_without_the_compiled_module():
    done = doctor(without("thawkit._C"))
    assert done.returncode == 1, done.stderr
    assert "the compiled module thawkit._C does not load" in done.stdout


def test_doctor_without_torch():
    done = doctor(without("torch"))
    assert done.returncode == 1, done.stderr
    assert "the operators do not load: ModuleNotFoundError: " in done.stdout
