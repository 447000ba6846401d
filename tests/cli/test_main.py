"""The command line as a whole: instant help, one clear line on bad input, doctor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from thawkit.cli import COMMANDS, main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thawkit.cli", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(command):
    arguments = [command, "--help"] if command else ["--help"]
    code = (
        "import sys; from thawkit.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'onnx', 'sklearn', 'timm', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: thawkit" in done.stdout


def test_version():
    assert run("--version").stdout.startswith("thawkit 0.")


def test_unknown_command_is_status_2():
    done = run("teleport")
    assert done.returncode == 2
    assert "invalid choice: 'teleport'" in done.stderr


def test_bad_input_is_one_line_and_status_2(capsys):
    assert main(["verify", "/nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("thawkit verify: error:")


def test_doctor_prints_extras_in_brackets(tmp_path, monkeypatch, capsys):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    main(["doctor"])
    assert 'then pip install "thawkit[cpu]" or "thawkit[gpu]"' in capsys.readouterr().out


def test_doctor_is_not_content_with_a_wish_that_no_kernel_obeys(monkeypatch, capsys):
    monkeypatch.setenv("THAWKIT_GEMM", "foo")
    assert main(["doctor"]) == 1
    assert "THAWKIT_GEMM must be one of own, torch, got 'foo'" in capsys.readouterr().out


def test_doctor_names_kernels_and_reasons(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "CPU kernels" in said
    assert "CPU products  " in said
    for operator in ("row_softmax", "mmd", "sigmoid_focal", "packed_relu"):
        assert operator in said
