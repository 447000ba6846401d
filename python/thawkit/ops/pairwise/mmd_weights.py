"""How much each pair of rows counts in an MMD: uniformly, by weights of the rows, class by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import numbered
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
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weights is None:
        of_x, of_y = (torch.ones(s.shape[0], dtype=torch.float64, device=s.device) for s in (x, y))
    else:
        of_x, of_y = _checked(weights, x, y, 2 if unbiased and labels is None else 1)
    if labels is None:
        of_x, of_y = _at_least_tiny(of_x / of_x.sum()), _at_least_tiny(of_y / of_y.sum())
        own = None
        if unbiased:
            own_x, own_y = (1 / _sum_of_pairs(w, lambda values: values.sum()) for w in (of_x, of_y))
            own = own_x.to(dtype).expand(of_x.shape), own_y.to(dtype).expand(of_y.shape)
        return Weights(of_x.to(dtype), -of_y.to(dtype), own)
    for name, label, rows_name, rows in zip(
        ("class_conditional[0]", "class_conditional[1]"), labels, ("x", "y"), (x, y), strict=True
    ):
        checks.labels(name, label, rows_name, rows)
    classes = numbered(torch.cat([label.to(torch.int64) for label in labels]))
    label_x, label_y = classes[: x.shape[0]], classes[x.shape[0] :]
    count = classes.shape[0]  # no class has a higher number

    def by_class(values: Tensor, label: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, label, values)

    def within(weight: Tensor, total: Tensor, label: Tensor) -> Tensor:
        return _at_least_tiny(weight / total.where(total > 0, 1)[label])

    total_x, total_y = by_class(of_x, label_x), by_class(of_y, label_y)
    of_x, of_y = within(of_x, total_x, label_x), within(of_y, total_y, label_y)
    common = (total_x > 0) & (total_y > 0)
    own = None
    if unbiased:
        pairs_x = _sum_of_pairs(of_x, lambda values: by_class(values, label_x), label_x)
        pairs_y = _sum_of_pairs(of_y, lambda values: by_class(values, label_y), label_y)
        common = common & (pairs_x > 0) & (pairs_y > 0)  # several rows of positive weight in each
        own_x, own_y = (1 / pairs.where(common, 1) for pairs in (pairs_x, pairs_y))
        own = own_x[label_x].to(dtype), own_y[label_y].to(dtype)
    part = common.to(of_x.dtype) / common.sum().clamp_min(1).to(of_x.dtype).sqrt()
    return Weights(
        (of_x * part[label_x]).to(dtype), (-of_y * part[label_y]).to(dtype), own, (label_x, label_y)
    )


_TINY = 1e-37  # float32 holds it and its inverse


def _at_least_tiny(weight: Tensor) -> Tensor:
    """Positive weights that float32 holds, so that a row next to a much heavier one still is in a pair."""
    return weight.where(weight == 0, weight.clamp_min(_TINY))


def _sum_of_pairs(weight: Tensor, total: Callable[[Tensor], Tensor], label: Tensor | None = None) -> Tensor:
    """``sum_{i != j} w_i w_j`` of weights of sum 1, within each class where there are classes.

    It is ``sum_i w_i (1 - w_i)``. For a row that has nearly all of the weight, ``1 - w_i`` would be left of
    a cancellation: there the others' weights are added up.
    """
    heavy = weight > 0.75  # one row at most
    light = total(weight.where(~heavy, 0))
    return total(weight * (light if label is None else light[label]).where(heavy, 1 - weight))


def _checked(weights: object, x: Tensor, y: Tensor, least: int) -> list[Tensor]:
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
        weight = weight.to(torch.float64)
        # their sum and squares stay within the dtype
        checked.append(weight / weight.detach().amax().clamp_min(torch.finfo(weight.dtype).tiny))
    return checked
