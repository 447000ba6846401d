import subprocess
import sys
from pathlib import Path

import pytest

from thawkit.deploy import runtime
from thawkit.errors import MissingDependencyError, ThawkitWarning


def install(folder: Path, name: str) -> None:
    """What importlib.metadata sees of an installed distribution."""
    info = folder / f"{name.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """An import path with nothing on it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    return tmp_path


def test_one_package_is_fine():
    found = runtime.status()
    assert found.ok
    assert len(found.installed) == 1
    runtime.require()


def test_none_names_the_extra(site):
    found = runtime.status()
    assert (found.ok, found.installed) == (False, {})
    with pytest.raises(MissingDependencyError, match=r'pip install "thawkit\[cpu\]"'):
        runtime.require()


def test_both_are_told_apart_and_warned_about(site):
    for name in runtime.PACKAGES:
        install(site, name)
    found = runtime.status()
    assert found.installed == {"onnxruntime": "1.2.3", "onnxruntime-gpu": "1.2.3"}
    assert "overwrite each other: pip uninstall" in found.advice
    with pytest.warns(ThawkitWarning, match="overwrite each other"):
        runtime.require()


def test_package_without_its_files_is_told(site):
    install(site, "onnxruntime-gpu")
    (site / "onnxruntime" / "capi").mkdir(parents=True)
    with pytest.raises(MissingDependencyError, match="pip install --force-reinstall onnxruntime-gpu"):
        runtime.require()


def test_build_under_another_name_counts(site):
    (site / "onnxruntime").mkdir()
    (site / "onnxruntime" / "__init__.py").touch()
    assert runtime.status() == runtime.Status({}, "")


def test_asking_imports_nothing_heavy():
    code = (
        "import sys; from thawkit.deploy import runtime; runtime.status();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
