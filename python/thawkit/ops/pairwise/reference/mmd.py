"""The definition of MMD."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops.pairwise.reference.distances import centre, squared_distances


def mean_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ``|u - v|^2`` over the pairs of distinct rows of both samples, in O((N + M) D), detached.

    Uses ``mean |u - v|^2 = 2 (mean |z|^2 - |mean z|^2)``, about the mean so that no digits are lost.
    """
    z = torch.cat((x.detach(), y.detach()))
    count = z.shape[0]
    return (z - z.mean(0)).square().sum() * (2.0 / max(count - 1, 1))


def mmd(x: Tensor, y: Tensor, gamma: Tensor, relative: bool, unbiased: bool) -> Tensor:
    """Squared MMD with the kernel ``sum_b exp(-gamma_b |u - v|^2)`` (Gretton et al. 2012, eqs. 3 and 5).

    Args:
        x: (N, D) sample.
        y: (M, D) sample.
        gamma: (B,) positive numbers, one a bandwidth.
        relative: gamma is in units of the inverse mean squared distance.
        unbiased: leave the diagonals of the xx and yy blocks out.

    Returns:
        Scalar: ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``.
    """

    def kernel_sum(u: Tensor, v: Tensor) -> Tensor:
        d2 = squared_distances(u, v)
        return sum((torch.exp(-g * d2).sum() for g in gamma.to(d2.dtype).unbind()), d2.new_zeros(()))

    if relative:
        # coinciding points: keep gamma finite
        gamma = gamma.to(x.dtype) / mean_squared_distance(x, y).clamp_min(2.6e-29)
        gamma = gamma.clamp_max(1e37)
    n, m = x.shape[0], y.shape[0]
    middle = centre(x, y)  # distances do not see it, rounding does
    x, y = x - middle, y - middle
    xx, yy, xy = kernel_sum(x, x), kernel_sum(y, y), kernel_sum(x, y)
    if unbiased:
        count = gamma.shape[0]
        return (xx - count * n) / (n * (n - 1)) + (yy - count * m) / (m * (m - 1)) - 2 * xy / (n * m)
    return xx / (n * n) + yy / (m * m) - 2 * xy / (n * m)
