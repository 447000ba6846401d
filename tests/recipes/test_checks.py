import pytest

from thawkit.recipes.demo.checks import checks


def test_all_pass_on_a_good_result(result):
    assert [check.passed for check in checks(result)] == [True, True, True]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "auroc"])
def test_the_probe_must_be_beaten_on_every_metric(result, metric):
    result["xray"]["tuned"]["test"][metric] = result["xray"]["probe"]["test"][metric]
    assert [check.passed for check in checks(result)] == [False, True, True]


@pytest.mark.parametrize(("gain", "passed"), [(0.05, True), (0.0499, False), (-0.1, False)])
def test_dan_must_gain_five_points_in_the_mean(result, gain, passed):
    result["digits"]["mean"]["gain"] = gain
    assert checks(result)[1].passed is passed
    assert f"{100 * gain:+.1f} points" in checks(result)[1].text


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({"max_difference": 1e-4}, True),
        ({"max_difference": 1.1e-4}, False),
        ({"max_difference": float("nan")}, False),
        ({"same_top1": 9}, False),
    ],
)
def test_the_bundle_must_agree(result, change, passed):
    result["bundle"]["elsewhere"].update(change)
    assert checks(result)[2].passed is passed
