"""What export and verify test on: the images that the training run held out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from thawkit.cli import main
from thawkit.data import load

pytestmark = pytest.mark.usefixtures("one_thread")

SPLIT = {"seed": 3, "val": 0.2, "test": 0.3}
WARNING = "is not the data of the training run, or not split as there"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 40 photos that has to be split, a run with other shares than the default, its bundle."""
    place = tmp_path_factory.mktemp("held_out")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")
    shares = [f"--{name}={value}" for name, value in SPLIT.items()]
    train = ["train", "--data", str(place / "photos"), "--model", "lenet", "--epochs", "1", *shares]
    assert main([*train, "--output", str(place / "run")]) == 0
    assert main(["export", str(place / "run"), "--output", str(place / "bundle")]) == 0
    return place


def test_run_and_bundle_record_the_split(place):
    splits = load(place / "photos", **SPLIT)
    recorded = {**splits.origin, "name": "photos", "fingerprint": splits.fingerprint()}
    assert json.loads((place / "run" / "run.json").read_text())["data"] == recorded
    del recorded["spec"]  # where the data lay is nobody's business on another machine
    assert json.loads((place / "bundle" / "manifest.json").read_text())["trained_on"] == [recorded]


@pytest.mark.parametrize("command", ["export", "verify"])
def test_the_data_are_split_as_in_training(place, tmp_path, capsys, command):
    arguments = {"export": ["run", "-o", str(tmp_path / "b")], "verify": ["bundle"]}[command]
    call = [command, str(place / arguments[0]), *arguments[1:], "--data", str(place / "photos")]
    assert main(call) == 0
    out, err = capsys.readouterr()
    assert "on 12 images of photos" in out
    assert err == ""
    assert main([*call, "--seed", "0", *(["--overwrite"] if command == "export" else [])]) == 0
    out, err = capsys.readouterr()
    assert "on 12 images of photos" in out
    assert err.startswith(f"thawkit {command}: warning: {place / 'photos'} {WARNING}")
    assert err.count("\n") == 1


def test_data_that_changed_are_warned_about(place, tmp_path, capsys):
    pixels = np.zeros((12, 12, 3), np.uint8)
    new = place / "photos" / "cat" / "new.png"
    Image.fromarray(pixels).save(new)
    try:
        assert main(["export", str(place / "run"), "-o", str(tmp_path / "b")]) == 0
        assert WARNING in capsys.readouterr().err
        assert main(["verify", str(place / "bundle"), "--data", str(place / "photos")]) == 0
        assert WARNING in capsys.readouterr().err
    finally:
        new.unlink()


def test_export_refuses_data_of_other_classes(place, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    for name in ("bird", "cat", "dog"):
        shutil.copytree(place / "photos" / "cat", tmp_path / "more" / name)
    call = ["export", str(place / "run"), "-o", str(tmp_path / "b"), "--data", str(tmp_path / "more")]
    assert main(call) == 2
    assert "more has 3 classes (bird, cat, dog), the model 2 classes (cat, dog)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
