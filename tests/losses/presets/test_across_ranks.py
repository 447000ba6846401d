"""Stand-ins in several processes beside the libraries' own losses there: see peer_ranks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.losses.presets import peer_ranks, peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.open_clip import ClipLoss, SigLipLoss


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    world = peer_ranks.PROCESSES
    script = Path(peer_ranks.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, script, str(rank), str(world), folder], env=environment)
        for rank in range(world)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * world
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.slow  # the first of them starts the processes
@pytest.mark.parametrize("name", peer_ranks.CHECKS)
def test_ranks(results, name):
    found = [result[name] for result in results]
    if found[0].startswith("missing: "):
        peers.skip(found[0].removeprefix("missing: "))
    failures = [text for text in found if text]
    assert not failures, failures[0]


@pytest.mark.parametrize("loss", [ClipLoss(world_size=2), SigLipLoss(world_size=2)])
def test_several_processes_need_a_process_group(loss):
    x = torch.ones(3, 4)
    bias = [0.0] if isinstance(loss, SigLipLoss) else []
    with pytest.raises(ThawkitError, match=r"world_size=2 needs torch\.distributed to be initialized"):
        loss(x, x, 1.0, *bias)
    with pytest.raises(ThawkitError, match="use_horovod is supported at False only, got True"):
        ClipLoss(world_size=2, use_horovod=True)
