import json
from functools import reduce

import pytest
from rich.console import Console

from thawkit.deploy import verify
from thawkit.recipes.demo import run
from thawkit.tune import load_run

from .pages import Page, outside_addresses

pytestmark = pytest.mark.slow

WRITTEN = {
    "percent": lambda v: f"{100 * v:.1f} %",
    "points": lambda v: f"{100 * v:+.1f}",
    "three": lambda v: f"{v:.3f}",
    "count": lambda v: f"{v:,d}",
    "times": lambda v: f"{v:.1f} times",
    "mb": lambda v: f"{v / 1_000_000:.1f} MB",
    "mib": lambda v: f"{v / 1_048_576:.1f} MiB",
    "ms": lambda v: f"{v:.2f} ms",
    "seconds": lambda v: f"{v:.0f} s",
    "tiny": lambda v: f"{v:.1e}",
    "text": str,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run(tmp_path_factory.mktemp("quick") / "demo", quick=True, seed=3, console=Console(quiet=True))


@pytest.fixture(scope="module")
def stored(demo):
    return json.loads((demo.folder / "demo.json").read_text(encoding="utf-8"))


def look_up(values, key):
    return reduce(lambda v, part: v[int(part)] if isinstance(v, list) else v[part], key.split("."), values)


def test_the_report_is_whole_and_loads_nothing(demo):
    text = demo.report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.sections == ["xrays", "freezing", "digits", "device", "times", "again", "sources"]
    assert outside_addresses(text) == []
    assert "Quick form" in text
    assert "nothing to show" not in text
    assert len(text) < 1_000_000


def test_every_number_on_the_page_is_the_one_in_the_result(demo, stored):
    numbers = Page(demo.report.read_text(encoding="utf-8")).numbers
    assert len(numbers) > 100
    for key, form, text in numbers:
        assert text == WRITTEN[form](look_up(stored, key)), key


def test_the_result_agrees_with_the_runs_and_the_bundle(demo, stored):
    xray = load_run(demo.folder / "xray-run")
    assert stored["xray"]["tuned"] == xray.metrics
    assert xray.config["seed"] == stored["seed"] == 3
    assert verify(demo.folder / "bundle").classes == xray.classes == ("normal", "pneumonia")
    for row in stored["digits"]["runs"]:
        metrics = load_run(demo.folder / "digits" / f"{row['method']}-{row['seed']}").metrics
        assert row["target_accuracy"] == metrics["target"]["accuracy"]
    gains = [row["dan"] - row["source_only"] for row in stored["digits"]["seeds"]]
    assert stored["digits"]["mean"]["gain"] == pytest.approx(sum(gains) / len(gains))


def test_the_bundle_agrees_with_torch_in_another_process(demo, stored):
    other = stored["bundle"]["elsewhere"]
    assert other["max_difference"] <= 1e-4
    assert other["same_top1"] == other["images"] == stored["xray"]["data"]["totals"]["test"]
    assert other["accuracy"] == pytest.approx(stored["xray"]["tuned"]["test"]["accuracy"])
    assert demo.failed == ()


def test_the_stages_make_up_the_time(stored):
    seconds = [stage["seconds"] for stage in stored["stages"]]
    assert len(seconds) == 6
    assert min(seconds) > 0
    assert sum(seconds) == pytest.approx(stored["seconds"], rel=0.1)


def test_samples_show_what_the_model_says(stored):
    samples = stored["xray"]["samples"]
    confusion = stored["xray"]["tuned"]["test"]["confusion"]
    assert samples["mistakes_total"] == confusion[0][1] + confusion[1][0]
    assert all(card["label"] != card["predicted"] for card in samples["mistakes"])
    sure = [card["probability"] for card in samples["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    assert all(0.5 <= card["probability"] <= 1 for card in samples["random"] + samples["mistakes"])
