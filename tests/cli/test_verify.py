import os
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from thawkit.cli import main
from thawkit.data import Preprocess, load
from thawkit.deploy import export


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """An .npz of dark and light squares; 5 of its 12 test images are light."""
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    labels = np.array([0, 1] * 12 + [0] * 7 + [1] * 5)
    images = (np.random.default_rng(0).integers(0, 100, (36, 20, 24)) + 120 * labels[:, None, None]).astype(
        np.uint8
    )
    parts = {"train": slice(0, 12), "val": slice(12, 24), "test": slice(24, 36)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    np.savez(path, **arrays, **{f"{part}_labels": labels[rows, None] for part, rows in parts.items()})
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, squares):
    """A bundle that finds every image light."""
    splits = load(squares)
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    network[-1].bias.data = torch.tensor([0.0, 99.0])
    folder = tmp_path_factory.mktemp("verify") / "light"
    export(network, Preprocess(16), splits.classes, folder, samples=splits.test)
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "light")


def test_summary_with_accuracy_and_latency(exported, squares, capsys):
    assert main(["verify", str(exported), "--data", str(squares), "--threads=1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Bundle light is sound" in out
    assert "5 give the logits of torch within" in out
    assert f"{5 / 12:.1%} on 12 images of squares test" in out
    assert "p50 " in out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: os.remove(b / "samples" / "1.png"), "samples/1.png is missing"),
        (lambda b: os.truncate(b / "model.onnx", 400), "model.onnx is damaged: 400 bytes"),
        (lambda b: (b / "manifest.json").write_text("{}"), "is not that of a thawkit bundle"),
        (lambda b: (b / "note.txt").touch(), "note.txt does not belong to the bundle"),
        (shutil.rmtree, "no bundle at"),
    ],
)
def test_damaged_bundle_is_one_line_and_exit_status_2(bundle, capsys, damage, says):
    damage(bundle)
    assert main(["verify", str(bundle)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("thawkit verify: error: ")
    assert says in err


def test_data_with_other_classes_is_refused(exported, tmp_path, capsys):
    labels = np.arange(30)[:, None] % 3
    part = {"images": np.zeros((30, 8, 8), np.uint8), "labels": labels}
    np.savez(
        tmp_path / "three.npz", **{f"{s}_{k}": v for s in ("train", "val", "test") for k, v in part.items()}
    )
    assert main(["verify", str(exported), "--data", str(tmp_path / "three.npz")]) == 2
    assert "three test has 3 classes (0, 1, 2), the bundle 2 classes (0, 1)" in capsys.readouterr().err
