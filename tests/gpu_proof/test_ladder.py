"""The file in which tests write the rungs that kernels reached."""

import json

import pytest

from .ladder import record


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
