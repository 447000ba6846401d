"""The file in which tests write the rungs that kernels reached."""

import json
import subprocess
import sys

import pytest

from .cuda_checks import KERNELS
from .cuda_host.build import ROOT
from .ladder import LADDER, gathered, merged, record


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
    record("cuda/pack", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kernel", "facts"), [("cuda/pack", {"bytes": 7.0}), ("cuda/none", {})])
def test_a_record_is_what_the_file_says(monkeypatch, kernel, facts):
    monkeypatch.delenv("THAWKIT_LADDER", raising=False)
    with pytest.raises(AssertionError, match=r"ladder.json does not say so"):
        record(kernel, 5, **facts)


def test_what_ran_on_a_gpu_is_there_with_its_figures():
    on_a_gpu = [name for name, kernel in json.loads(LADDER.read_text()).items() if 6 in kernel["rungs"]]
    assert not on_a_gpu or list((ROOT / "bench" / "results").glob("gpu-*.json"))


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


def test_a_run_of_some_kernels_leaves_the_others_as_they_are():
    before = {"a": {"rungs": [1, 2], "bytes": 8}, "b": {"rungs": [1], "bytes": 4}}
    now = {"b": {"rungs": [5], "bytes": 5}, "c": {"rungs": [3]}}
    assert merged(before, now) == {
        "a": {"rungs": [1, 2], "bytes": 8},
        "b": {"rungs": [1, 5], "bytes": 5},
        "c": {"rungs": [3]},
    }


def _below_rung_five(names: list[str]) -> dict[str, list[int]]:
    kernels = json.loads(LADDER.read_text())
    rungs = {name: kernels.get(name, {"rungs": []})["rungs"] for name in names}
    return {name: reached for name, reached in rungs.items() if not {*reached} >= {1, 2, 3, 4, 5}}


def test_every_cuda_kernel_stands_at_rung_five():
    assert not _below_rung_five([f"cuda/{kernel}" for kernel in KERNELS])


def test_every_triton_family_stands_at_rung_five():
    pytest.importorskip("triton")
    from .families import FAMILIES

    names = [family.rung for family in FAMILIES.values()]
    assert not _below_rung_five(names)
    known = {*names, *(f"cuda/{kernel}" for kernel in KERNELS)}
    assert set(json.loads(LADDER.read_text())) == known, "a kernel that is no more"


def test_the_readme_shows_the_ladder():
    done = subprocess.run(
        [sys.executable, "bench/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, "python bench/readme.py writes the README's tables anew " + done.stderr
