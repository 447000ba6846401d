import json

import numpy as np
import pytest
from PIL import Image

from thawkit.cli import main
from thawkit.data import load
from thawkit.tune import load_run

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--epochs", "1", "--batch-size", "25"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small MNIST, and the same inverted: two domains with the same classes."""
    folder = tmp_path_factory.mktemp("digits")
    mnist = load("mnist")
    arrays = {}
    for name in ("train", "val", "test"):
        part = getattr(mnist, name)
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = part.images[:100], part.labels[:100]
    np.savez(folder / "plain.npz", **arrays)
    inverted = {key: 255 - value if key.endswith("images") else value for key, value in arrays.items()}
    np.savez(folder / "inverted.npz", **inverted)
    return folder


def test_adapt_with_its_baseline(digits, tmp_path, capsys):
    domains = ["--source", str(digits / "plain.npz"), "--target", str(digits / "inverted.npz")]
    assert main(["adapt", *domains, "--output", str(tmp_path / "run"), "--baseline", *SMALL]) == 0
    out = capsys.readouterr().out
    adapted, alone = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "run-source-only")
    )
    before, after = alone["target"]["accuracy"], adapted["target"]["accuracy"]
    assert f"Target accuracy: {before:.4f} source-only, {after:.4f} dan ({after - before:+.4f})" in out
    assert load_run(tmp_path / "run").load_target().name == "inverted"
    assert f"thawkit export {tmp_path}/run --output" in out
    methods = [
        json.loads((tmp_path / n / "run.json").read_text())["method"]["name"]
        for n in ("run", "run-source-only")
    ]
    assert methods == ["DAN", "Supervised"]


def test_source_only(digits, tmp_path):
    domains = ["--source", str(digits / "plain.npz"), "--target", str(digits / "inverted.npz")]
    assert (
        main(["adapt", *domains, "--output", str(tmp_path / "run"), "--method", "source-only", *SMALL]) == 0
    )
    assert "target" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_target_without_labels(digits, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, pixels in enumerate(load(digits / "inverted.npz").train.images[:20]):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    domains = ["--source", str(digits / "plain.npz"), "--target", str(photos)]
    assert main(["adapt", *domains, "--output", str(tmp_path / "run"), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "plain (100 labelled images) to photos (14 images), DAN" in out
    assert "photos has no labels: no accuracy on the target is reported" in out
    assert "target test" not in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics.keys() == {"val", "test", "best_epoch", "epochs", "selection"}
    run = load_run(tmp_path / "run")
    assert run.method["name"] == "DAN"
    assert run.load_target().test.labels is None
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle")]) == 0
    out, err = capsys.readouterr()
    assert "same top-1" in out
    assert "accuracy" not in out
    assert err == ""


@pytest.mark.parametrize("name", ["run", "run-source-only"])
def test_folders_are_checked_before_the_data(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    domains = ["--source", "nowhere", "--target", "nowhere"]
    assert main(["adapt", *domains, "--output", str(tmp_path / "run"), "--baseline"]) == 2
    assert f"output {tmp_path / name} is not empty" in capsys.readouterr().err


def test_the_trade_off_is_checked_before_the_data(tmp_path, capsys):
    domains = ["--source", "nowhere", "--target", "nowhere"]
    assert main(["adapt", *domains, "-o", str(tmp_path / "run"), "--baseline", "--trade-off", "-1"]) == 2
    assert "trade_off must be a number from 0 up, got -1.0" in capsys.readouterr().err


def test_domains_with_other_classes(digits, tmp_path, capsys):
    domains = ["--source", str(digits / "plain.npz"), "--target", "pneumoniamnist"]
    assert main(["adapt", *domains, "--output", str(tmp_path / "run"), *SMALL]) == 2
    assert "has other classes than" in capsys.readouterr().err
