"""Median distance of all pairs of rows."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision, lifted


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Median of ``|u - v|^2`` over the pairs of distinct rows of (N, D) and (M, D), without a gradient.

    Of an even number of pairs the lower of the two in the middle; 0 of fewer than two rows.
    """
    checks.row_pair("x", x, "y", y)
    with full_precision(x):
        return reference.median_squared_distance(lifted(x), lifted(y))
