"""Drift: alarms where there is something and not elsewhere, what moved, files, models, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import thawkit
from thawkit.drift import DriftDetector, DriftReport, drift
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F


def rows(count, features=6, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def moved(count, seed=1):
    """The third feature's mean is one standard deviation off."""
    batch = rows(count, seed=seed)
    batch[:, 2] += 1.0
    return batch


def test_drift_is_found_and_named():
    report = drift(rows(300), moved(100))
    assert report.drifted
    assert report.p_value <= 0.05
    assert report.statistic > report.critical_value
    assert report.features[0].name == "2"
    assert report.features[0].mean_shift == pytest.approx(1, abs=0.3)
    assert [f.name for f in report.moved] == ["2"]
    assert (report.reference_rows, report.batch_rows) == (300, 100)
    assert str(report).startswith("drift: p = ")
    assert "1 of 6 features moved" in str(report)


def test_a_few_rows_against_a_long_reference():
    report = drift(rows(10_000), rows(3, seed=1) + 10, permutations=99)
    assert report.drifted
    assert report.p_value == 0.01


def test_nothing_is_found_where_nothing_is():
    report = drift(rows(300), rows(100, seed=1))
    assert not report.drifted
    assert report.p_value > 0.05
    assert report.statistic < report.critical_value
    assert report.moved == ()
    assert str(report).startswith("no drift: p = ")
    assert "none of 6 features" in str(report)


def test_false_alarms_are_as_rare_as_the_threshold_says():
    """100 batches at 0.1: more than 20 alarms once in 1000 times. And no more for the features together."""
    reports = [
        drift(rows(40, seed=2 * i), rows(30, seed=2 * i + 1), threshold=0.1, permutations=99)
        for i in range(100)
    ]
    assert sum(report.drifted for report in reports) <= 20
    assert sum(bool(report.moved) for report in reports) <= 20


def test_the_report_agrees_with_itself():
    """p <= threshold exactly where the statistic reaches the critical value, ties aside."""
    for seed in range(20):
        batch = rows(40, seed=seed + 100) + 0.02 * seed
        report = drift(rows(60, seed=seed), batch, threshold=0.2, permutations=49, seed=seed)
        assert report.drifted == (report.p_value <= 0.2) == (report.statistic > report.critical_value)


def test_units_do_not_matter():
    scale, offset = torch.tensor([1, 1e-6, 1e6, 1, 3, 7]), torch.tensor([0, 0, 1e9, -5, 0, 0])
    plain = drift(rows(200).double(), moved(80).double())
    odd = drift(rows(200).double() * scale + offset, moved(80).double() * scale + offset)
    assert odd.p_value == plain.p_value
    assert odd.features[0].ks == pytest.approx(plain.features[0].ks)


@pytest.mark.parametrize("scale", [1e-300, 1e200, 1e307])
def test_features_whose_squares_float64_does_not_hold(scale):
    plain, odd = (drift(rows(200).double() * s, moved(80).double() * s) for s in (1.0, scale))
    assert odd.drifted
    assert odd.p_value == plain.p_value
    assert odd.features[0].mean_shift == pytest.approx(plain.features[0].mean_shift)


def test_byte_order_does_not_matter():
    other = [x.numpy().astype(">f4") for x in (rows(60), moved(40))]
    assert drift(*other) == drift(rows(60), moved(40))


def test_the_statistic_is_that_of_the_test():
    x, y = rows(50).double(), moved(40).double()
    z = torch.cat((x, y))
    z = ((z - z.mean(0)) / z.std(0, correction=0)).float()
    expected = F.mmd_test(z[:50], z[50:], 200, seed=3)
    report = drift(x, y, permutations=200, seed=3)
    assert report.statistic == pytest.approx(expected.statistic, rel=1e-6)
    assert report.p_value == expected.p_value


@pytest.mark.parametrize("form", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.half, lambda x: x])
def test_forms_of_data(form):
    expected = drift(rows(60).half().float(), moved(40).half().float(), permutations=50)
    got = drift(form(rows(60).half().float()), form(moved(40).half().float()), permutations=50)
    assert got.p_value == expected.p_value


def test_one_feature_and_more_dimensions():
    assert drift(rows(100)[:, 0], rows(100)[:, 0] + 2).drifted
    assert len(drift(rows(30).reshape(30, 2, 3), rows(20, seed=1).reshape(20, 2, 3)).features) == 6
    assert drift(np.arange(50), np.arange(40) + 100).drifted


def test_constant_features_are_no_trouble():
    x, y = rows(50), rows(40, seed=1)
    x[:, 1] = y[:, 1] = 4
    x[:, 3], y[:, 3] = 0, 1
    report = drift(x, y)
    assert report.drifted
    assert [f.name for f in report.moved] == ["3"]
    assert np.isfinite(report.statistic)


def test_a_long_reference_is_sampled_once():
    detector = DriftDetector(rows(5000), keep=300)
    assert detector.reference.shape == (300, 6)
    assert torch.equal(detector.reference, DriftDetector(rows(5000), keep=300).reference)
    assert detector.check(moved(100)).reference_rows == 300


def test_a_check_can_be_repeated():
    detector = DriftDetector(rows(60), seed=5)
    assert detector.check(rows(50, seed=1)) == detector.check(rows(50, seed=1))


def test_names():
    names = list("abcdef")
    report = DriftDetector(rows(100), names=names).check(moved(100))
    assert report.moved[0].name == "c"
    assert {f.name for f in report.features} == set(names)


def test_a_report_for_the_log():
    report = drift(rows(60), moved(60))
    kept = json.loads(json.dumps(report.as_dict()))
    assert kept["drifted"] is True
    assert kept["features"][0]["name"] == "2"
    assert DriftReport(**{**report.as_dict(), "features": report.features}) == report


@pytest.mark.parametrize("bandwidths", ["median", "mean", (2.0, 3), torch.tensor([1.0, 2.0])])
def test_files(tmp_path, bandwidths):
    options = {"threshold": 0.1, "permutations": 60, "bandwidths": bandwidths, "seed": 4}
    detector = DriftDetector(rows(60), names=list("abcdef"), **options)
    path = tmp_path / "reference"
    detector.save(path)
    again = DriftDetector.load(path)
    assert again.check(moved(40)) == detector.check(moved(40))
    assert path.exists()


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("reference")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "version.npz", reference=np.zeros((3, 2)), options='{"format": 99}')
    np.savez(tmp_path / "options.npz", reference=np.zeros((3, 2)), options='{"format": 1}')
    (tmp_path / "empty.npz").touch()
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros((3, 2)))
    DriftDetector(rows(60)).save(tmp_path / "damaged.npz")
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[200:260] = bytes(byte ^ 0x5A for byte in damaged[200:260])
    (tmp_path / "damaged.npz").write_bytes(damaged)
    names = ("text", "other", "version", "missing", "options", "empty", "array", "damaged")
    for name in (f"{name}.npz" for name in names):
        with pytest.raises(ThawkitError, match=r"must be a file that DriftDetector\.save wrote"):
            DriftDetector.load(tmp_path / name)


def test_a_models_features():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    model.train()
    detector = DriftDetector(rows(600).numpy().astype("float64"), model=model, permutations=50)
    with torch.no_grad():
        features = model.eval()(rows(600))
    torch.testing.assert_close(detector.reference, features.double(), rtol=1e-5, atol=1e-6)
    model.train()
    detector.check(moved(40))
    assert model.training
    assert model[1].training


def test_a_function_for_a_model():
    detector = DriftDetector(rows(50), model=lambda x: x[:, :2])
    assert detector.reference.shape == (50, 2)
    assert not detector.check(moved(40)).drifted


def test_a_loaded_detector_has_its_model_again(tmp_path):
    model = nn.Linear(6, 2)
    detector = DriftDetector(rows(50), model=model, permutations=50)
    detector.save(tmp_path / "d.npz")
    with pytest.raises(ThawkitError, match="needs its model"):
        DriftDetector.load(tmp_path / "d.npz")
    assert DriftDetector.load(tmp_path / "d.npz", model).check(moved(40)) == detector.check(moved(40))
    DriftDetector(rows(50)).save(tmp_path / "d.npz")
    with pytest.raises(ThawkitError, match="has no model"):
        DriftDetector.load(tmp_path / "d.npz", model)


def test_it_is_found_from_the_package():
    assert thawkit.drift.drift is drift


R = rows(5)
HOLED = R.clone()
HOLED[2, 1] = torch.nan


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: drift(R, R[:, :2]), "batch must have 6 features, as the reference has, got 2"),
        (lambda: drift(R, R[:1]), "batch must have at least 2 rows and 1 feature"),
        (lambda: drift(R[:0], R), "reference must have at least 2 rows"),
        (lambda: drift(R[:, :0], R), "reference must have at least 2 rows and 1 feature"),
        (lambda: drift(R, HOLED), "batch must be finite, but 1 of its 5 rows are not, in 1 of 6 features"),
        (lambda: drift("abc", R), "reference must be an array or tensor of numbers, got str"),
        (lambda: drift(R, [["a"], ["b"]]), "batch must be an array or tensor of numbers, got list"),
        (lambda: drift(3.0, R), "reference must hold rows of real numbers"),
        (lambda: drift(R, R, threshold=0.0), "threshold must be between 0 and 1, got 0.0"),
        (lambda: drift(R, R, threshold=0.01, permutations=50), "permutations must be at least 99"),
        (lambda: drift(R, R, names=["a"]), "names must name 6 features"),
        (lambda: drift(R, R, keep=1), "keep must be an integer of at least 2"),
        (lambda: drift(R, R, bandwidths="wide"), "bandwidths must be"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
