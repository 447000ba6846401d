"""Frozen models under DDP and FSDP2 on two processes: see wrapped_ranks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frozen import wrapped_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, str]]:
    """What each process found, by case: one start of the processes runs all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    started = [
        subprocess.Popen([sys.executable, wrapped_ranks.__file__, str(rank), folder], env=environment)
        for rank in range(wrapped_ranks.PROCESSES)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(started))]


@pytest.mark.slow  # the first of them starts the processes
@pytest.mark.parametrize("wrapper", wrapped_ranks.WRAPPERS)
@pytest.mark.parametrize("case", wrapped_ranks.CASES, ids=str)
def test_gradients_are_those_of_one_process(results, case, wrapper: str) -> None:
    for found in results:
        assert not found[f"{case} {wrapper}"], found[f"{case} {wrapper}"]
