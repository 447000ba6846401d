"""pytorch-metric-learning's distances and reducers, by what they come to here.

They are known by their classes, so that nothing of the library is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError


def kind_of(piece: Any, default: str) -> str:
    """Return the class of a distance or reducer, or a name that nothing has where it is not the library's."""
    if piece is None:
        return default
    library = type(piece).__module__.split(".")[0] == "pytorch_metric_learning"
    return type(piece).__name__ if library else ""


def similarity(distance: Any) -> tuple[bool, float]:
    """Return whether rows are normalized, and the factor of their products."""
    kind = kind_of(distance, "")
    if distance is None:
        return True, 1.0
    unit = distance.normalize_embeddings if kind else False
    if kind == "LpDistance" and unit and distance.p == 2 and distance.power == 2:
        return True, 2.0  # -|x - y|^2 = 2 x y - 2
    products = kind in ("CosineSimilarity", "DotProductSimilarity") and distance.power == 1
    if products and (not unit or distance.p == 2):
        return unit, 1.0
    raise ThawkitError(
        "distance must be CosineSimilarity or DotProductSimilarity, or LpDistance of normalized rows with "
        f"p=2 and power=2, got {_described(distance)}"
    )


def triplet_distance(distance: Any) -> tuple[str, bool, float]:
    """Return the distance's name, whether rows are normalized for it, and its factor."""
    kind = kind_of(distance, "")
    if distance is None:
        return "euclidean", True, 1.0
    if kind in ("CosineSimilarity", "DotProductSimilarity", "LpDistance") and distance.p == 2:
        unit = distance.normalize_embeddings
        if kind == "LpDistance" and distance.power == 1:
            return "euclidean", unit, 1.0
        if unit and distance.power == (2 if kind == "LpDistance" else 1):
            return "cosine", False, 2.0 if kind == "LpDistance" else 1.0  # |x - y|^2 = 2 (1 - x y)
    raise ThawkitError(
        "distance must be LpDistance with p=2 and power=1, or of normalized rows CosineSimilarity, "
        f"DotProductSimilarity or LpDistance with p=2 and power=2, got {_described(distance)}"
    )


def _described(piece: Any) -> str:
    shown = ("normalize_embeddings", "p", "power", "low", "high")
    values = [f"{name}={getattr(piece, name)!r}" for name in shown if hasattr(piece, name)]
    return f"{type(piece).__name__}({', '.join(values)})"


_REDUCERS = (
    "MeanReducer",
    "SumReducer",
    "AvgNonZeroReducer",
    "ThresholdReducer",
    "ClassWeightedReducer",
)


def check_reducer(reducer: Any, default: str, others: tuple[str, ...], *, thresholds: bool = False) -> None:
    """Require a reducer that has a counterpart, with ``thresholds`` one of any thresholds."""
    kind, choices = kind_of(reducer, default), _REDUCERS + others
    if kind not in choices:
        raise ThawkitError(f"reducer must be one of {', '.join(choices)}, got {type(reducer).__name__}")
    if kind == "ThresholdReducer" and not (thresholds or above_zero(reducer, kind)):
        raise ThawkitError(f"reducer must have low=0 and high=None here, got {_described(reducer)}")
    if kind == "PerAnchorReducer":
        check_reducer(reducer.reducer, "MeanReducer", (), thresholds=True)
        aggregation = reducer.aggregation_func
        where = getattr(aggregation, "__module__", ""), getattr(aggregation, "__name__", "")
        if where != ("pytorch_metric_learning.reducers.per_anchor_reducer", "aggregation_func"):
            raise ThawkitError(f"aggregation_func of reducer must be its default, got {aggregation!r}")


def above_zero(reducer: Any, kind: str) -> bool:
    """Whether the mean goes over the losses above 0."""
    if kind == "ThresholdReducer":
        return reducer.low == 0 and reducer.high is None
    return kind == "AvgNonZeroReducer"


def reduced_tuples(
    reducer: Any, default: str, loss: Callable[[str], Tensor], counts: Tensor, labels: Tensor
) -> Tensor:
    """Reduce losses of pairs or triplets, of which ``loss`` knows sums and each anchor has some number."""
    kind = kind_of(reducer, default)
    if kind == "MeanReducer":
        return loss("mean")
    if kind == "SumReducer":
        return loss("sum")
    if kind == "ClassWeightedReducer":
        rows = loss("none")
        return (rows * reducer.weights.to(rows)[labels]).sum() / counts.sum().clamp_min(1)
    if kind == "PerAnchorReducer":
        rows = loss("none") / counts.clamp_min(1)
        return reduced_rows(reducer.reducer, kind_of(reducer.reducer, "MeanReducer"), rows, labels)
    return loss("mean_nonzero")


def reduced_rows(reducer: Any, kind: str, rows: Tensor, labels: Tensor) -> Tensor:
    """Reduce one loss an anchor."""
    if kind == "MeanReducer":
        return rows.mean()
    if kind == "SumReducer":
        return rows.sum()
    if kind == "ClassWeightedReducer":
        return (rows * reducer.weights.to(rows)[labels]).mean()
    low, high = (0, None) if kind == "AvgNonZeroReducer" else (reducer.low, reducer.high)
    kept = torch.ones_like(rows, dtype=torch.bool)
    if low is not None:
        kept &= rows > low
    if high is not None:
        kept &= rows < high
    return rows.where(kept, 0).sum() / kept.sum().clamp_min(1)
