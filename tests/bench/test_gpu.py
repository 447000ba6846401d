"""bench/gpu.py: tried with tiny sizes on the CPU, and where there is no GPU it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
WITHOUT_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "gpu.py", *arguments]
    return subprocess.run(command, env=WITHOUT_GPU, capture_output=True, text=True, check=False)


def test_every_case_runs(tmp_path):
    done = bench("--device", "cpu", "--quick", "--rounds", "2", "--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["loss"]: row for row in document["rows"]}
    losses = ["clip", "siglip", "info_nce", "linear_cross_entropy", "mmd", "sigmoid_focal", "focal"]
    assert list(rows) == losses
    for loss, row in rows.items():
        assert "thawkit" not in row["failed"], row
        assert row["rounds"] == 2
        assert row["of_limit"] > 0
        assert set(row["ms"]) == set(row["peak_mib"]) >= {"thawkit", "eager"}
        assert row["gradient_difference"]["eager"] < (1e-4 if loss == "mmd" else 2e-2), loss


def test_what_there_is_when_the_time_is_over_is_written(tmp_path):
    output = tmp_path / "gpu.json"
    done = bench("--device", "cpu", "--quick", "--seconds", "0", "--output", str(output))
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert document["rows"] == []
    assert document["cut_short"].startswith("after 0 s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "--device cpu --quick tries the script"), (("--device", "cpu"), "goes with --quick only")],
)
def test_without_a_gpu_it_says_so(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
