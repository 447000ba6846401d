"""Classification metrics from logits, in numpy, as scikit-learn defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thawkit.errors import ThawkitError

Array = NDArray[Any]


def classification_metrics(logits: Array, labels: Array) -> dict[str, Any]:
    """Score logits (N, C) against labels (N,).

    Returns:
        ``count``; ``loss`` (mean cross-entropy in nats); ``accuracy``; ``balanced_accuracy`` (mean recall of
        the classes that occur); ``macro_f1`` (mean over the classes that occur or were predicted);
        ``confusion`` (C lists of C counts, rows true, columns predicted); and with 2 classes that both occur
        ``auroc``.

    Raises:
        ThawkitError: no rows, or a label outside the logits' classes.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    count, classes = logits.shape
    if count == 0 or labels.shape != (count,):
        raise ThawkitError(
            f"metrics need logits (N, C) and labels (N,), N > 0; got {logits.shape}, {labels.shape}"
        )
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ThawkitError(f"label {labels.max()} is out of range for a model of {classes} classes")
    predicted = logits.argmax(1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    hits, true, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    log_sum = np.logaddexp.reduce(logits, axis=1)
    metrics = {
        "count": count,
        "loss": float((log_sum - logits[np.arange(count), labels]).mean()),
        "accuracy": float(hits.sum() / count),
        "balanced_accuracy": float((hits[true > 0] / true[true > 0]).mean()),
        "macro_f1": float((2 * hits / np.maximum(true + called, 1))[true + called > 0].mean()),
        "confusion": confusion.tolist(),
    }
    if classes == 2 and (true > 0).all():
        metrics["auroc"] = _auroc(logits[:, 1] - logits[:, 0], labels)
    return metrics


def _auroc(scores: Array, labels: Array) -> float:
    """Return the chance that a positive scores above a negative, a tie counting half (Mann-Whitney)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    positives = int(labels.sum())
    above = mean_rank[places][labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(labels) - positives)))
