"""``thawkit drift``: files in, a verdict out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from thawkit.cli import main
from thawkit.drift import DriftDetector


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    for name, shift in (("reference", 0), ("same", 0), ("moved", 1)):
        np.save(tmp_path / f"{name}.npy", random.normal(shift, 1, (100, 3)))
    DriftDetector(np.load(tmp_path / "reference.npy")).save(tmp_path / "reference.npz")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=np.zeros(3), b=np.zeros(3))
    return tmp_path


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_verdicts(files, kind, capsys):
    reference = str(files / f"reference.{kind}")
    assert main(["drift", reference, str(files / "same.npy")]) == 0
    assert capsys.readouterr().out.startswith("no drift")
    assert main(["drift", reference, str(files / "moved.npy")]) == 1
    assert capsys.readouterr().out.startswith("drift")


def test_options_and_json(files, capsys):
    arguments = ["--threshold", "0.2", "--permutations", "50", "--seed", "3", "--json"]
    assert main(["drift", str(files / "reference.npy"), str(files / "moved.npy"), *arguments]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["threshold"] == 0.2
    assert len(report["features"]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reference.npy", "none.npy"], "must be a .npy file of numbers"),
        (["reference.npy", "empty.npy"], "must be a .npy file of numbers"),
        (["several.npz", "same.npy"], "must be a file that DriftDetector.save wrote"),
        (["reference.npy", "several.npz"], "got several: a, b"),
        (["reference.npz", "same.npy", "--seed", "1"], "--seed is kept in"),
    ],
)
def test_bad_input(files, arguments, says, capsys):
    arguments = [str(files / a) if a.endswith(("npy", "npz")) else a for a in arguments]
    assert main(["drift", *arguments]) == 2
    assert says in capsys.readouterr().err
