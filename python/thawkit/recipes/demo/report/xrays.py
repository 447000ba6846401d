"""The tables, charts and pictures of the X-ray half."""

from __future__ import annotations

from html import escape

from thawkit.recipes.demo.report.charts import Series, line_chart
from thawkit.recipes.demo.report.page import Values, captioned, card, confusion, pair, table


def scores(values: Values) -> str:
    """Probe and fine-tuned, on the test images and for comparison on the validation images."""
    names = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")

    def row(title: str, key: str) -> list[str]:
        test, val = f"xray.{key}.test", f"xray.{key}.val"
        return [title, *values.row(test, names, "three"), *values.row(val, ("balanced_accuracy",), "three")]

    return table(
        ("", "accuracy", "balanced accuracy", "AUROC", "macro F1", "balanced accuracy, validation"),
        [row("Linear probe", "probe"), row("Fine-tuned", "tuned")],
        caption="On the test images; the last column on the validation images, for comparison",
        emphasis=1,
    )


def training_charts(values: Values) -> str:
    """Loss and validation scores by epoch, the kept epoch ringed."""
    history, best = values.get("xray.history"), values.get("xray.tuned.best_epoch")

    def series(name: str, key: str, style: int, marked: float | None) -> Series:
        return Series(name, [(row["epoch"], row[key]) for row in history if key in row], style, marked)

    losses = line_chart(
        [series("training", "loss", 0, None), series("validation", "val_loss", 1, best)],
        title="Loss by epoch",
        description=f"Cross-entropy on training and validation images. Epoch {best} was kept.",
        x_label="epoch",
        y_label="cross-entropy",
    )
    found = line_chart(
        [
            series("AUROC", "val_auroc", 0, best),
            series("balanced accuracy", "val_balanced_accuracy", 1, best),
        ],
        title="Validation scores by epoch",
        description=f"AUROC and balanced accuracy on validation images. Epoch {best} was kept.",
        x_label="epoch",
        y_label="validation score",
    )
    return pair(
        captioned(
            losses, "Loss. Training images are augmented and weighted by class, validation images not."
        ),
        captioned(found, "Validation scores. The ring marks the epoch kept: the best balanced accuracy."),
    )


def confusions(values: Values) -> str:
    """The confusion matrices of both, side by side."""
    classes = values.get("xray.data.classes")
    return pair(
        confusion(values, "xray.probe.test.confusion", classes, "Linear probe"),
        confusion(values, "xray.tuned.test.confusion", classes, "Fine-tuned"),
    )


def samples(values: Values) -> str:
    """Predictions on test images drawn at random."""
    return _cards(values, "xray.samples.random")


def mistakes(values: Values) -> str:
    """The most confident mistakes on test images."""
    return _cards(values, "xray.samples.mistakes")


def _cards(values: Values, key: str) -> str:
    made = []
    for number, one in enumerate(values.get(key)):
        answer, truth = escape(one["predicted"]), escape(one["label"])
        lines = (
            f"<b>{answer}</b>",
            values(f"{key}.{number}.probability", "percent"),
            f"truth: {truth}",
        )
        alt = f"X-ray: {one['label']}, answer {one['predicted']}"
        made.append(card(one["image"], alt, lines, right=answer == truth))
    return f'<div class="cards">{"".join(made)}</div>' if made else "<p>None.</p>"


def freeze_table(values: Values) -> str:
    """What trains and what is kept for the backward pass, by kind of layer."""
    key = "xray.freeze"
    rows = []
    for number, row in enumerate(values.get(f"{key}.rows")):
        at = f"{key}.rows.{number}"
        counts = values.row(at, ("modules", "rewritten", "trainable"), "count")
        rows.append(
            [escape(row["kind"]), *counts, *values.row(at, ("saved_bytes_before", "saved_bytes"), "mib")]
        )
    both = values.row(key, ("saved_bytes_before", "saved_bytes"), "mib")
    rows.append(["Together", "", "", values(f"{key}.trainable", "count"), *both])
    return table(
        ("layer", "modules", "rewritten", "parameters that train", "kept by PyTorch", "kept by thawkit"),
        rows,
        caption=f"Activations kept for the backward pass of one step of {values(f'{key}.images')} X-rays",
        emphasis=len(rows) - 1,
    )
