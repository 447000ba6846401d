"""Distances of all pairs of rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SAMPLE = 64  # rows


def centre(*rows: Tensor) -> Tensor:
    """(D,) point amid the rows of several matrices, which a few of them far away cannot drag along.

    It is the mean of the rows that are not much farther than is usual from the median of each feature over
    evenly spaced rows. Distances do not see a common shift, but lose digits to it where they come from a
    product of matrices.
    """
    x = torch.cat(rows).detach()
    count = x.shape[0]
    sample = torch.arange(min(count, _SAMPLE), device=x.device) * count // max(min(count, _SAMPLE), 1)
    far = (x - _median(x[sample])).square().sum(1)
    near = far <= 16 * _median(far[sample, None])
    return x.where(near[:, None], 0).sum(0) / near.sum().clamp_min(1)


def _median(x: Tensor) -> Tensor:
    """(D,) medians of the finite numbers of each column."""
    usable = x.isfinite()
    if not x.shape[0]:
        return x.new_zeros(x.shape[1])
    middle = (usable.sum(0, keepdim=True) - 1).clamp_min(0) // 2
    return x.where(usable, torch.inf).sort(dim=0).values.gather(0, middle).squeeze(0).where(usable.any(0), 0)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared Euclidean distances, in O(N M) memory."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.t()).clamp_min(0)


def distances(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """(N, M) distances, ``euclidean`` or ``cosine`` (1 - cosine similarity)."""
    return euclidean_distances(x, y) if kind == "euclidean" else cosine_distances(x, y)


def cosine_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) numbers ``1 - cos(x_i, y_j)`` from 0 to 2."""
    return 1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).t()


def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) Euclidean distances. At distance 0 the gradient is 0, the middle of all slopes there.

    From ``|x|^2 + |y|^2 - 2 x y``, a product of matrices. (``torch.cdist`` is the same product, without what
    follows, or subtracts row from row for 13 times the time at N = 1024, D = 256.) Its cancellation is held
    down in two ways: norms are about a common :func:`centre`, which distances do not see, and squares of no
    more than rounding leaves of two equal rows are 0, which are 8 units in the last place of their norms
    (float32 is seen to leave under 5). Else equal rows would have the slope 1 / sqrt(rounding). An infinite
    row of x is at no distance from any (NaN), one of y infinitely far from finite ones.
    """
    middle = centre(x, y)
    x, y = x - middle, y - middle
    x_norms, y_norms = x.square().sum(1, keepdim=True), y.square().sum(1)
    norms = x_norms + (x_norms - x_norms) + y_norms
    squares = norms - 2 * x @ y.t()
    apart = ~(squares <= 8 * torch.finfo(x.dtype).eps * norms)  # true where not a number
    far = x_norms.isfinite() & y_norms.isinf()
    return squares.where(apart & ~far, 1).sqrt().where(apart, 0).masked_fill(far, torch.inf)
