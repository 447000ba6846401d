"""Sliced Wasserstein distance of two samples, as a function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, product

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int | Tensor = 64,
    p: float = 2.0,
    x_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
    root: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sliced Wasserstein distance (Bonneel et al. 2015, definition 2), by random projections.

    On each line the optimal plan pairs quantiles: ``W_p^p = integral_0^1 |F_x^-1(t) - F_y^-1(t)|^p dt``. The
    quantile functions are steps, so the integral is a sum over the N + M - 1 steps of both, exact for any
    sizes and weights. In O(L (N + M) (D + log(N + M))).

    Args:
        x: (N, D) sample, e.g. features of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        projections: number of random directions, drawn anew in each call; or (D, L) directions, a column
            each, of any length but 0.
        p: exponent, at least 1.
        x_weight: (N,) weights of the rows, at least 0 and not all 0; only their ratios matter. None: equal
            ones.
        y_weight: (M,) weights of the rows of y.
        root: return ``(mean W_p^p)^(1/p)``, a distance, with gradient 0 where it is 0. False: ``mean W_p^p``,
            which is smooth where samples meet.
        generator: where random directions come from, on the device of ``x``; None: torch's own.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample has no rows, a direction is 0, weights
            are negative or all 0, p is below 1.
    """
    checks.row_pair("x", x, "y", y)
    checks.finite("p", p)
    if p < 1:
        raise ThawkitError(f"p must be at least 1, got {p}")
    checks.boolean("root", root)
    for name, sample in (("x", x), ("y", y)):
        if sample.shape[0] == 0:
            raise ThawkitError(f"{name} must have at least 1 row, got 0")
    _check_weight("x_weight", x_weight, "x", x)
    _check_weight("y_weight", y_weight, "y", y)
    with full_precision(x):
        x, y = lifted(x), lifted(y)
        directions = _directions(projections, x, generator)
        x_lines, y_lines = product(x, directions), product(y, directions)
        if x_weight is not None or y_weight is not None:
            gaps, widths = _weighted_steps(x_lines, y_lines, x_weight, y_weight)
        else:
            gaps, widths = _steps(x_lines.sort(0).values, y_lines.sort(0).values)
        if not root:
            return (_power(gaps, p) * widths).sum(0).mean()
        # in units of the largest gap, as the dtype may hold a distance and not its power
        unit = gaps.detach().abs().amax().clamp_min(torch.finfo(gaps.dtype).tiny)
        return unit * _root((_power(gaps / unit, p) * widths).sum(0).mean(), p)


def _check_weight(name: str, weight: Tensor | None, rows_name: str, rows: Tensor) -> None:
    if weight is None:
        return
    checks.floating(name, weight)
    if weight.shape != rows.shape[:1]:
        raise ThawkitError(
            f"{name} must have shape ({rows.shape[0]},), one weight a row of {rows_name}, "
            f"got {tuple(weight.shape)}"
        )
    checks.same_device(name, weight, rows_name, rows)
    if checks.readable(weight) and not bool(((weight >= 0) & weight.isfinite()).all() & (weight > 0).any()):
        raise ThawkitError(f"{name} must hold finite numbers of at least 0, not all of them 0")


def _directions(projections: int | Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """(D, L) directions of length 1."""
    features = x.shape[1]
    if not isinstance(projections, Tensor):
        checks.integer("projections", projections, 1)
        directions = torch.randn(features, projections, dtype=x.dtype, device=x.device, generator=generator)
        return normalize(directions, dim=0)
    checks.matrix("projections", projections)
    checks.same_device("projections", projections, "x", x)
    if projections.shape[0] != features or projections.shape[1] == 0:
        raise ThawkitError(
            f"projections must have shape ({features}, directions), got {tuple(projections.shape)}"
        )
    directions = projections.to(x.dtype)
    largest = directions.detach().abs().amax(0)
    if checks.readable(directions) and bool((largest == 0).any()):
        raise ThawkitError(
            "projections must have no column of zeros, which is no direction, "
            f"got {int((largest == 0).sum())} of {directions.shape[1]}"
        )
    return normalize(directions / largest, dim=0)  # of numbers whose squares the dtype may not hold


def _power(gap: Tensor, p: float) -> Tensor:
    return gap.abs() if p == 1 else gap.square() if p == 2 else gap.abs() ** p


def _steps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gap and width of each step of the quantile functions of sorted (N, L) and (M, L) numbers."""
    n, m = x.shape[0], y.shape[0]
    if n == m:
        return x - y, x.new_full((1, 1), 1 / n)
    # In units of 1 / (N M) the steps of x end at multiples of M and those of y at multiples of N.
    ends_x = torch.arange(1, n + 1, device=x.device) * m
    ends_y = torch.arange(1, m + 1, device=x.device) * n
    ends = torch.cat((ends_x, ends_y)).sort().values
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    # A step of no length may start where all ends; it counts nothing.
    i, j = (starts // m).clamp_max(n - 1), (starts // n).clamp_max(m - 1)
    width = (ends - starts).to(x.dtype) / (n * m)
    return x.index_select(0, i) - y.index_select(0, j), width[:, None]


def _weighted_steps(
    x: Tensor, y: Tensor, x_weight: Tensor | None, y_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same of weighted numbers, whose steps end elsewhere on every line."""
    x, x_ends = _sorted_with_ends(x, x_weight)
    y, y_ends = _sorted_with_ends(y, y_weight)
    ends = torch.cat((x_ends, y_ends), 1).sort(1).values
    starts = torch.cat((torch.zeros_like(ends[:, :1]), ends[:, :-1]), 1)
    i = torch.searchsorted(x_ends.detach(), starts.detach(), right=True).clamp_max(x.shape[1] - 1)
    j = torch.searchsorted(y_ends.detach(), starts.detach(), right=True).clamp_max(y.shape[1] - 1)
    return (x.gather(1, i) - y.gather(1, j)).t(), (ends - starts).t()


def _sorted_with_ends(lines: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """(L, N) sorted numbers, and where on [0, 1] the step of each ends; both are contiguous."""
    values, order = lines.t().sort(1)
    weight = lines.new_ones(lines.shape[0]) if weight is None else weight.to(lines.dtype)
    ends = (weight / weight.sum())[order].cumsum(1)
    return values, ends / ends[:, -1:]  # the last one is 1 whatever rounding does


def _root(mean: Tensor, p: float) -> Tensor:
    zero = mean == 0
    return mean.where(~zero, 1).pow(1 / p).where(~zero, 0)
