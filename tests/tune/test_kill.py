"""kill -9 at any moment, resume, and the final metrics are those of a run that nothing happened to."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from thawkit.data import load
from thawkit.select import create_model
from thawkit.tune import fit
from thawkit.tune.checkpoints import MARKER, problem

SCRIPT = Path(__file__).with_name("killed_runs.py")
spec = importlib.util.spec_from_file_location("killed_runs", SCRIPT)
killed_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed_runs)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def results(folder):
    history = json.loads((folder / "history.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.fixture(scope="module")
def data(splits, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "blobs.npz"
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    arrays = {f"{name}_images": part.images for name, part in parts.items()}
    arrays |= {f"{name}_labels": part.labels for name, part in parts.items()}
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return results(killed_runs.train(data, tmp_path_factory.mktemp("whole") / "run").path)


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, SCRIPT, data, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("point", killed_runs.POINTS)
def test_killed_and_resumed_equals_undisturbed(killed, data, undisturbed, point):
    folder = killed / point
    assert not (folder / "metrics.json").exists()
    killed_runs.train(data, folder, resume=True)
    assert results(folder) == undisturbed
    assert not list(folder.glob("*.partial"))
    assert [problem(checkpoint) for checkpoint in (folder / "checkpoints").iterdir()] in (
        [None],
        [None, None],
    )


def rot(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("victim", ["optimizer.pt", "model.safetensors", "trainer_state.json", MARKER])
@pytest.mark.parametrize("damage", [rot, Path.unlink])
def test_damaged_checkpoints_are_passed_over(data, undisturbed, tmp_path, capsys, victim, damage, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "metrics.json").unlink()
    newest = folder / "checkpoints" / "checkpoint-12"
    damage(newest / victim)
    fit(
        create_model("lenet", 3),
        load(data),
        config=killed_runs.CONFIG,
        output=folder,
        resume=True,
        console=Console(file=sys.stdout, width=200),
    )
    assert "passing over checkpoint-12: " in capsys.readouterr().out
    assert results(folder) == undisturbed


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return killed_runs.train(data, tmp_path_factory.mktemp("whole") / "run").path
