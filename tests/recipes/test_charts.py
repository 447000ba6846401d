import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from thawkit.recipes.demo.report.charts import Series, bars_chart, line_chart, pairs_chart, percent, ticks

WORDS = {"title": "Loss & gain", "description": "What <happened>."}
AXES = {**WORDS, "x_label": "epoch", "y_label": "loss"}


def parsed(svg):
    root = ElementTree.fromstring(svg)
    assert root.find("title").text == WORDS["title"]
    assert root.find("desc").text == WORDS["description"]
    assert not re.search(r"nan|inf", svg.replace("information", ""))
    return root


def texts(root):
    return [node.text for node in root.iter("text")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.31, 0.74), (-5, 12), (1e-9, 3e-9), (0.5, 0.5), (0, 0), (-3, -3), (2, 1)]
)
def test_ticks_enclose_the_range_at_round_distances(low, high):
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 12
    assert marks[0] <= min(low, high) + 1e-12
    assert marks[-1] >= max(low, high) - 1e-12
    steps = {f"{b - a:.6g}" for a, b in itertools.pairwise(marks)}
    assert len(steps) == 1
    assert f"{float(steps.pop()):e}"[0] in "125"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_ticks_of_what_is_not_finite_can_still_be_drawn(bad):
    assert all(math.isfinite(mark) for mark in ticks(bad, 1.0))


def test_line_chart_draws_every_series_with_legend_and_labels():
    series = [
        Series("train", [(1, 0.9), (2, 0.5), (3, 0.4)]),
        Series("val", [(1, 1.0), (2, 0.7)], 1, marked=2),
    ]
    root = parsed(line_chart(series, **AXES))
    assert len(root.findall("polyline")) == 2
    assert {"train", "val", "epoch", "loss", "1", "2", "3"} <= set(texts(root))
    assert len([c for c in root.iter("circle") if "ring" in c.get("class")]) == 1


@pytest.mark.parametrize("series", [[], [Series("train", [])], [Series("train", [(1, math.nan)])]])
def test_line_chart_of_nothing_says_so(series):
    assert texts(parsed(line_chart(series, **AXES))) == ["nothing to show"]


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, 0.5), (3, 0.5)], [(1, 0.0), (2, 0.0)]])
def test_line_chart_of_a_constant_or_a_single_point_stays_inside_the_frame(points):
    root = parsed(line_chart([Series("train", points)], **AXES))
    dots = [c for c in root.iter("circle") if c.get("r") == "3"]
    assert len(dots) == len(points)
    for dot in dots:
        assert 0 < float(dot.get("cx")) < 460
        assert 0 < float(dot.get("cy")) < 250


def test_line_chart_leaves_out_what_is_not_finite():
    root = parsed(line_chart([Series("train", [(1, 0.5), (2, math.inf), (3, 0.4)])], **AXES))
    assert len(root.find("polyline").get("points").split()) == 2


def test_many_epochs_do_not_crowd_the_axis():
    root = parsed(line_chart([Series("train", [(x, x * x) for x in range(1, 101)])], **AXES))
    labels = [node for node in root.iter("text") if node.get("y") == "224.0"]
    assert 5 <= len(labels) <= 10


def test_pairs_chart_places_points_by_value_and_writes_the_gain():
    rows = [("seed 0", 0.25, 0.75), ("seed 1", 0.5, 0.4)]
    root = parsed(pairs_chart(rows, **WORDS, names=("before", "after"), x_label="accuracy"))
    assert {"+50.0", "-10.0", "before", "after", "seed 0"} <= set(texts(root))
    first, second = (float(c.get("cx")) for c in list(root.iter("circle"))[2:4])
    assert second - first == pytest.approx(0.5 * (460 - 64 - 60), abs=0.2)


@pytest.mark.parametrize("rows", [[], [("seed 0", math.nan, 0.5)]])
def test_pairs_chart_of_nothing_says_so(rows):
    root = parsed(pairs_chart(rows, **WORDS, names=("a", "b"), x_label="accuracy"))
    assert texts(root) == ["nothing to show"]


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0], [1.0, math.nan, -2.0], [5.0, 5.0]])
def test_bars_have_a_width_that_can_be_drawn(values):
    rows = [(f"stage {number}", value) for number, value in enumerate(values)]
    root = ElementTree.fromstring(bars_chart(rows, **WORDS))
    widths = [float(bar.get("width")) for bar in root.iter("rect")]
    assert len(widths) == len(values)
    assert all(0 <= width <= 460 for width in widths)
    if max(values) > 0:
        assert max(widths) == pytest.approx(460 - 240 - 64, abs=0.1)


def test_bars_of_nothing_say_so():
    assert texts(parsed(bars_chart([], **WORDS))) == ["nothing to show"]


@pytest.mark.parametrize(("value", "text"), [(0.25, "25 %"), (1, "100 %"), (0.195, "19.5 %")])
def test_percent(value, text):
    assert percent(value) == text
