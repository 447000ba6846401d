"""The power criterion of a two-sample test, from the sums of a kernel matrix."""

from __future__ import annotations

import torch
from torch import Tensor

REGULARIZATION = 1e-8  # lambda, added to the variance (Liu et al. 2020, eq. 5)


def power_criterion(sums: Tensor, first: int, own: Tensor | float, pairs: Tensor | None = None) -> Tensor:
    """``MMD^2 / sigma_H1``: what makes a test powerful, up to what grows with the samples alone.

    Samples of one size n are taken as n pairs (Liu et al. 2020, eqs. 2, 3 and 5): with
    ``H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)``

        MMD^2 = sum_{i != j} H_ij / (n (n - 1))
        sigma^2 = 4 / n^3 sum_i (sum_j H_ij)^2 - 4 / n^4 (sum_ij H_ij)^2 + lambda.

    Samples of different sizes n and m are not paired. MMD^2 is the two-sample U-statistic (Gretton et al.
    2012, eq. 3), and ``sigma^2 = 4 c (Var h(x) / n + Var h(y) / m) + lambda`` the variance of its leading
    term, h(x) being the mean of k(x, X) less that of k(x, Y) and vice versa, times the harmonic mean c of n
    and m in place of n.

    Args:
        sums: (n + m, 2) sums of each row of K over the columns of x and over those of y, without its
            diagonal.
        first: n.
        own: k(z_i, z_i), (n + m,) or one number for all.
        pairs: (n,) ``k(x_i, y_i)``; None where the samples have different sizes.

    Returns:
        Scalar, differentiable.
    """
    n, m = first, sums.shape[0] - first
    x_x, x_y = sums[:n, 0], sums[:n, 1]
    y_x, y_y = sums[n:, 0], sums[n:, 1]
    own_x = own_y = own
    if isinstance(own, Tensor) and own.dim():
        own_x, own_y = own[:n], own[n:]
    if pairs is not None:
        rows = x_x + own_x + y_y + own_y - x_y - y_x
        off_diagonal = rows.sum() - (own_x + own_y - 2 * pairs).sum()
        # (4 / n^3) sum r^2 - (4 / n^4) (sum r)^2, about the mean so that no digits are lost
        variance = 4 / n**2 * rows.var(correction=0)
        return off_diagonal / (n * (n - 1)) / torch.sqrt(variance + REGULARIZATION)
    mmd = x_x.sum() / (n * (n - 1)) + y_y.sum() / (m * (m - 1)) - (x_y.sum() + y_x.sum()) / (n * m)
    of_x, of_y = (x_x + own_x) / n - x_y / m, (y_y + own_y) / m - y_x / n
    common = 2 * n * m / (n + m)
    variance = 4 * common * (of_x.var(correction=0) / n + of_y.var(correction=0) / m)
    return mmd / torch.sqrt(variance + REGULARIZATION)
