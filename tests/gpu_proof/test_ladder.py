"""The file in which tests write the rungs that kernels reached."""

import json
import subprocess
import sys

import pytest

from .cuda_checks import KERNELS
from .cuda_host.build import ROOT
from .ladder import LADDER, gathered, record


def test_rungs_are_appended_to_the_named_file(tmp_path, monkeypatch):
    path = tmp_path / "ladder.jsonl"
    monkeypatch.setenv("THAWKIT_LADDER", str(path))
    record("cuda/focal", 1)
    record("cuda/focal", 4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"kernel": "cuda/focal", "rung": 1}, {"kernel": "cuda/focal", "rung": 4}]


def test_no_file_is_written_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("THAWKIT_LADDER", raising=False)
    monkeypatch.chdir(tmp_path)
    record("cuda/focal", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rung", [-1, 7])
def test_a_rung_that_the_ladder_lacks_is_an_error(rung):
    with pytest.raises(ValueError, match="rung: expected 0 to 6"):
        record("cuda/focal", rung)


def test_records_of_a_kernel_are_gathered():
    lines = [
        '{"kernel": "b", "rung": 3}',
        '{"kernel": "a", "rung": 5, "bytes": 8}',
        '{"kernel": "b", "rung": 1}',
    ]
    assert gathered(lines) == {"a": {"rungs": [5], "bytes": 8}, "b": {"rungs": [1, 3]}}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_cuda_kernel_stands_at_rung_five(kernel):
    assert set(json.loads(LADDER.read_text())[f"cuda/{kernel}"]["rungs"]) >= {1, 2, 3, 4, 5}


def test_the_readme_shows_the_ladder():
    done = subprocess.run(
        [sys.executable, "bench/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, "python bench/readme.py writes the README's tables anew " + done.stderr
