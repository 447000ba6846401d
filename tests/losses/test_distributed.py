"""Losses of rows on several ranks against one process that has all of them: see distributed_ranks.py."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.losses import distributed_ranks
from thawkit.errors import ThawkitError
from thawkit.losses import ClipLoss, distributed
from thawkit.losses import functional as F

SCRIPT = Path(distributed_ranks.__file__)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found, by check: one start of the processes runs all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    world = distributed_ranks.PROCESSES
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(world), folder], env=environment)
        for rank in range(world)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * world
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def assert_passed(results, names):
    for name in names:
        found = [result[name] for result in results if name in result]
        assert found, name
        failures = [text for text in found if text]
        assert not failures, f"{name}:\n{failures[0]}"


@pytest.mark.slow  # the first of them starts the processes
@pytest.mark.parametrize("group", distributed_ranks.GROUPS)
@pytest.mark.parametrize("mode", distributed_ranks.MODES)
@pytest.mark.parametrize("subject", [*distributed_ranks.CASES, *distributed_ranks.CHECKS])
def test_ranks_are_one_process(results, subject, mode, group):
    if mode == "ring" and subject in distributed_ranks.GATHER_ONLY:
        pytest.skip("has no ring")
    names = [name for name, *_ in distributed_ranks.combinations()]
    start = f"{group}, {mode}: {subject}"
    assert_passed(results, [name for name in names if name == start or name.startswith(f"{start}, ")])


def test_a_group_without_this_process(results):
    assert_passed(results, ["outsider"])


def test_ranks_do_not_wait_for_one_that_is_no_more(results):
    assert_passed(results, ["dead rank"])


@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_one_process_needs_no_ranks(mode):
    image, text = torch.randn(5, 4), torch.randn(5, 4)
    expected = F.clip(image, text, logit_scale=3.0)
    assert torch.equal(distributed.clip(image, text, logit_scale=3.0, mode=mode), expected)
    assert torch.equal(ClipLoss(distributed=mode)(image, text, 3.0), expected)


ONE_PROCESS_ONLY = {"soft_targets", "ref", "ref_labels", "own", "pair_weight"}


def test_signatures_are_those_of_one_process():
    for name in distributed_ranks.LOSSES:
        alone = inspect.signature(getattr(F, name)).parameters
        across = inspect.signature(getattr(distributed, name)).parameters
        expected = [x for x in alone.values() if x.name not in ONE_PROCESS_ONLY]
        expected += [across[option] for option in ("mode", "group") if option in across]
        assert ("mode" in across) == (name not in distributed_ranks.NO_RING)
        assert [x.replace(annotation=None) for x in across.values()] == [
            x.replace(annotation=None)
            for x in expected  # labels may be None beside pair_weight
        ]


def test_bad_modes():
    x = torch.ones(3, 4)
    with pytest.raises(ThawkitError, match="mode must be one of 'gather', 'ring', got 'all'"):
        distributed.supcon(x, torch.ones(3).long(), mode="all")
    with pytest.raises(ThawkitError, match="distributed must be one of 'gather', 'ring', got 'all'"):
        ClipLoss(distributed="all")
    with pytest.raises(ThawkitError, match=r"group is given, but torch\.distributed is not initialized"):
        distributed.clip(x, x, group=object())
