import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from thawkit.cli import main
from thawkit.data import load
from thawkit.deploy import Bundle
from thawkit.select import create_model
from thawkit.tune import TuneConfig, fit, load_run, predict


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch on light and dark squares, and the data."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (rng.integers(0, 100, (60, 24, 30)) + 120 * labels[:, None, None]).astype(np.uint8)
    parts = {"train": slice(0, 32), "val": slice(32, 44), "test": slice(44, 60)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows, None] for part, rows in parts.items()}
    np.savez(folder / "squares.npz", **arrays)
    splits = load(folder / "squares.npz")
    model = create_model("lenet", 2, pretrained=False)
    fit(
        model,
        splits,
        config=TuneConfig(epochs=1, batch_size=16, train="all", device="cpu"),
        output=folder / "run",
        console=Console(quiet=True),
    )
    return folder / "run", splits


def test_run_becomes_a_bundle_with_the_same_answers(trained, tmp_path, capsys):
    run, splits = trained
    assert main(["export", str(run), "--output", str(tmp_path / "squares"), "--images=5"]) == 0
    out = capsys.readouterr().out
    assert "Bundle squares" in out
    assert "of torch (tolerance 1e-04), same top-1" in out
    assert "on 5 images of" in out
    bundle = Bundle(tmp_path / "squares")
    assert bundle.classes == list(splits.classes)
    pixels = np.stack([splits.test.image(i).permute(1, 2, 0).numpy() for i in range(len(splits.test))])
    want = predict(load_run(run).model, splits.test).numpy()
    np.testing.assert_allclose(bundle.logits(pixels), want, rtol=0, atol=1e-4)
    capsys.readouterr()
    assert main(["export", str(run), "-o", str(tmp_path / "squares")]) == 2
    assert capsys.readouterr().err.startswith("thawkit export: error: output: ")


def test_disagreement_is_exit_status_1_and_no_folder(trained, tmp_path, capsys):
    assert main(["export", str(trained[0]), "-o", str(tmp_path / "b"), "--tolerance=0", "--images=3"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("thawkit export: parity check failed: logits differ from torch by up to ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no_such_run", "-o", "b"], "no_such_run"),
        ([".", "-o", "b"], "is not a thawkit run"),
        ([".", "-o", "b", "--images=-1"], "--images must be at least 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["export", "verify"])
def test_help_loads_nothing_heavy(command):
    code = (
        f"import argparse, sys, json; from thawkit.cli import {command} as c; p = argparse.ArgumentParser();"
        "c.add_arguments(p); p.format_help(); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "onnx", "onnxruntime", "numpy", "transformers", "rich"}
