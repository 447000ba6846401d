"""How much each pair of rows counts in an MMD: uniformly, by weights of the rows, class by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import lifted, numbered
from thawkit.ops.pairwise.reference.mmd import Weights


def pair_weights(
    x: Tensor,
    y: Tensor,
    *,
    unbiased: bool,
    weights: tuple[Tensor, Tensor] | None = None,
    labels: tuple[Tensor, Tensor] | None = None,
) -> Weights | None:
    """Return what pairs count, None for the mean over each block of pairs.

    Args:
        x: (N, D) sample.
        y: (M, D) sample.
        unbiased: leave out the pairs of a row with itself, and make up for it.
        weights: (N,) and (M,) numbers from 0 up, divided here by their sums.
        labels: (N,) and (M,) integers: the mean over the labels that both samples have of the MMD within a
            label. Those with one row of positive weight in a sample count for nothing where ``unbiased``.

    Raises:
        ThawkitError: a tensor does not fit, a weight is negative or not finite, a sum of weights is 0.
    """
    if weights is None and labels is None:
        return None
    ones = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weights is None:
        of_x, of_y = (torch.ones(s.shape[0], dtype=ones, device=s.device) for s in (x, y))
    else:
        of_x, of_y = _checked(weights, x, y, ones, 2 if unbiased and labels is None else 1)
    if labels is None:
        of_x, of_y = of_x / of_x.sum(), of_y / of_y.sum()
        same = _factor(of_x.square().sum()), _factor(of_y.square().sum())
        own = (same[0].expand_as(of_x), same[1].expand_as(of_y)) if unbiased else None
        return Weights(of_x, -of_y, own)
    for name, label, rows_name, rows in zip(
        ("class_conditional[0]", "class_conditional[1]"), labels, ("x", "y"), (x, y), strict=True
    ):
        checks.labels(name, label, rows_name, rows)
    classes = numbered(torch.cat([label.to(torch.int64) for label in labels]))
    label_x, label_y = classes[: x.shape[0]], classes[x.shape[0] :]
    count = classes.shape[0]  # no class has a higher number

    def by_class(values: Tensor, label: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, label, values)

    total_x, total_y = by_class(of_x, label_x), by_class(of_y, label_y)
    of_x, of_y = of_x / total_x.clamp_min(_TINY)[label_x], of_y / total_y.clamp_min(_TINY)[label_y]
    common = (total_x > 0) & (total_y > 0)
    own = None
    if unbiased:
        squares_x, squares_y = by_class(of_x.square(), label_x), by_class(of_y.square(), label_y)
        pairs_x, pairs_y = (_several(w, label, by_class) for w, label in ((of_x, label_x), (of_y, label_y)))
        common = common & pairs_x & pairs_y
        own = _factor(squares_x.where(common, 0))[label_x], _factor(squares_y.where(common, 0))[label_y]
    part = common.to(of_x.dtype) / common.sum().clamp_min(1).sqrt()
    return Weights(of_x * part[label_x], -of_y * part[label_y], own, (label_x, label_y))


_TINY = 1e-37


def _factor(squares: Tensor) -> Tensor:
    """What makes up for the pairs of a row with itself: 1 / sum_{i != j} w_i w_j of weights of sum 1."""
    return 1 / (1 - squares)


def _several(weights: Tensor, label: Tensor, by_class: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Whether a class has more than one row of positive weight."""
    return by_class((weights > 0).to(weights.dtype), label) > 1


def _checked(weights: object, x: Tensor, y: Tensor, dtype: torch.dtype, least: int) -> list[Tensor]:
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise ThawkitError(f"weights must be (weights of x, weights of y), got {type(weights).__name__}")
    checked = []
    for name, weight, rows_name, rows in zip(
        ("weights[0]", "weights[1]"), weights, ("x", "y"), (x, y), strict=True
    ):
        checks.floating(name, weight)
        if weight.shape != rows.shape[:1]:
            raise ThawkitError(
                f"{name} must have shape ({rows.shape[0]},), one number a row of {rows_name}, "
                f"got {tuple(weight.shape)}"
            )
        checks.same_device(name, weight, rows_name, rows)
        if checks.readable(weight):
            if not bool((weight.isfinite() & (weight >= 0)).all()):
                raise ThawkitError(f"{name} must hold finite numbers from 0 up, got {weight.tolist()[:8]}")
            if (positive := int((weight > 0).sum())) < least:
                raise ThawkitError(f"{name} must hold at least {least} positive numbers, got {positive}")
        weight = lifted(weight).to(dtype)
        # their sum and squares stay within float32
        checked.append(weight / weight.detach().amax().clamp_min(_TINY))
    return checked
