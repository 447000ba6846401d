"""Median distance of all pairs of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, cuda_mmd, reference, triton_mmd
from thawkit.ops.pairwise.common import full_precision, lifted

KERNELS = {"cpu": cpu, "cuda": cuda_mmd, "triton": triton_mmd}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Median of ``|u - v|^2`` over the pairs of distinct rows of (N, D) and (M, D), without a gradient.

    Of an even number of pairs it is the lower of the two in the middle; 0 of fewer than two rows. Float64, as
    the square of a float32 distance can be too large for float32.
    """
    checks.row_pair("x", x, "y", y)
    x, y = x.detach(), y.detach()
    backend = choose("median_squared_distance", OBJECTIONS, x, y)
    if backend == "reference":
        with full_precision(x):
            return _definition(lifted(x), lifted(y))
    median: Tensor = _median_op(x, y, backend)
    return median


def _definition(x: Tensor, y: Tensor) -> Tensor:
    """The reference of rows in units, powers of 2, in which the mean square is about 2^60.

    So squares stay within float32, also those of pairs that are much nearer than the mean.
    """
    mean = reference.mean_squared_distance(x.double(), y.double())
    usable = mean.isfinite() & (mean > 0)
    unit = (30 - mean.where(usable, 2.0**60).log2() / 2).round().clamp(-126, 126).exp2()
    rows = (z * unit.to(z.dtype) for z in (x, y))
    return reference.median_squared_distance(*rows).double() / unit.square()


def usual_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """The median of :func:`median_squared_distance` or, where most rows coincide and it is 0, the mean."""
    median = median_squared_distance(x, y)
    if checks.readable(median) and bool(median > 0):
        return median
    return median.where(median != 0, reference.mean_squared_distance(x.double(), y.double()))


_median_op = define(
    "median_squared_distance(Tensor x, Tensor y, str backend) -> Tensor",
    lambda x, y, backend: KERNELS[backend].median_squared_distance(x, y),
    lambda x, y, backend: x.new_empty((), dtype=torch.float64),
)
