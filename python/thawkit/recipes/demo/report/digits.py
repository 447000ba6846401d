"""The tables, charts and pictures of the digits half."""

from __future__ import annotations

from thawkit.recipes.demo.report.charts import Series, line_chart, pairs_chart, percent
from thawkit.recipes.demo.report.page import Values, captioned, card, pair, table


def strips(values: Values) -> str:
    """A row of digits from either domain."""
    source, target = values.get("digits.samples.source"), values.get("digits.samples.target")
    return pair(
        _strip(source, f"{values('digits.source.name')}: the source, with labels"),
        _strip(
            [one["image"] for one in target][: len(source)],
            f"{values('digits.target.name')}: the target, without",
        ),
    )


def _strip(images: list[str], caption: str) -> str:
    row = "".join(f'<img src="{image}" alt="a digit">' for image in images)
    return f'<figure class="strip"><div>{row}</div><figcaption>{caption}</figcaption></figure>'


def seed_table(values: Values) -> str:
    """Target accuracy of both for every seed, and the means."""

    def row(title: str, key: str) -> list[str]:
        both = values.row(key, ("source_only", "dan"), "percent")
        return [title, *both, *values.row(key, ("gain",), "points")]

    seeds = values.get("digits.seeds")
    rows = [row(f"seed {one['seed']}", f"digits.seeds.{number}") for number, one in enumerate(seeds)]
    return table(
        ("", "not adapted (source-only)", "adapted (DAN)", "points gained"),
        [*rows, row("Mean", "digits.mean")],
        caption="Accuracy on the target's test images",
        emphasis=len(rows),
    )


def charts(values: Values) -> str:
    """Before and after by seed, and the way there by epoch."""
    pairs = pairs_chart(
        [(f"seed {row['seed']}", row["source_only"], row["dan"]) for row in values.get("digits.seeds")],
        title="Target accuracy by seed",
        description="Accuracy on the target's test images, source-only and DAN, one line a seed.",
        names=("source-only", "DAN"),
        x_label="target accuracy, test images",
    )
    curves = line_chart(
        [Series("source-only", _mean(values, "source_only"), 0), Series("DAN", _mean(values, "dan"), 1)],
        title="Target accuracy by epoch",
        description="Mean over the seeds, on the target's validation images.",
        x_label="epoch",
        y_label="target accuracy",
        y_format=percent,
    )
    return pair(
        captioned(pairs, "Every seed, and the points gained."),
        captioned(curves, "Mean over the seeds, on target validation images. Shown here, used for nothing."),
    )


def _mean(values: Values, method: str) -> list[tuple[float, float]]:
    by_epoch: dict[int, list[float]] = {}
    for run in values.get("digits.runs"):
        if run["method"] == method:
            for row in run["history"]:
                by_epoch.setdefault(row["epoch"], []).append(row["target_accuracy"])
    return [(epoch, sum(found) / len(found)) for epoch, found in sorted(by_epoch.items())]


def samples(values: Values) -> str:
    """What both models of the first seed read on target test images."""
    made = []
    for one in values.get("digits.samples.target"):
        lines = (f"DAN: <b>{one['dan']}</b>", f"source-only: {one['source_only']}", f"truth: {one['label']}")
        made.append(card(one["image"], f"digit {one['label']}", lines, right=one["dan"] == one["label"]))
    return f'<div class="cards">{"".join(made)}</div>'
