"""Estimators of the squared MMD in less than the time of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops.pairwise.common import product
from thawkit.ops.pairwise.reference.distances import centre
from thawkit.ops.pairwise.reference.kernels import OF_DISTANCES, Kernel, of_pairs, of_products, of_squares
from thawkit.ops.pairwise.reference.mmd import Weights


def of_means(x: Tensor, y: Tensor, weights: Weights, equal: bool) -> Tensor:
    """The definition with the kernel ``<u, v>``, one layer and no labels, in O((N + M) D)."""
    if equal or weights.same is None:  # rounding sees a common shift, only the weighted U-statistic does too
        middle = centre(x, y)
        x, y = x - middle, y - middle
    if weights.same is None:
        of_x, of_y = (_weighted_sum(w, rows) for w, rows in ((weights.x, x), (weights.y, y)))
        return (of_x + of_y).square().sum()
    sums, value = [], x.new_zeros(())
    for rows, weight, same in ((x, weights.x, weights.same[0]), (y, weights.y, weights.same[1])):
        # the square of a row that has nearly all of the weight is never added, so that nothing cancels
        heaviest = weight.detach().abs().argmax()[None]
        row = _weighted_sum(weight.index_select(0, heaviest), rows.index_select(0, heaviest))
        others = weight.index_fill(0, heaviest, 0)
        rest = _weighted_sum(others, rows)
        pairs = 2 * row @ rest + rest.square().sum() - others.square() @ rows.square().sum(1)
        value = value + same[0] * pairs
        sums.append(row + rest)
    return value + 2 * sums[0] @ sums[1]


def _weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    return (weights[:, None] * rows).sum(0)


def linear_time(x: Tensor, y: Tensor, kernel: Kernel, rates: Tensor | None) -> Tensor:
    """Mean of h over disjoint pairs of rows (Gretton et al. 2012, lemma 14), unbiased, in O((N + M) D)."""
    half = min(x.shape[0], y.shape[0]) // 2
    x, y = x + (x - x), y + (y - y)  # an infinite row is at no distance from any, as among all pairs
    (x, other_x), (y, other_y) = x[: 2 * half].split(half), y[: 2 * half].split(half)
    pairs = ((x, other_x, 1), (y, other_y, 1), (x, other_y, -1), (other_x, y, -1))
    return sum((sign * of_pairs(kernel, rates, u, v) for u, v, sign in pairs), x.new_zeros(())).mean()


def of_blocks(x: Tensor, y: Tensor, kernel: Kernel, rates: Tensor | None, size: int) -> Tensor:
    """Mean of the U-statistics of disjoint blocks of ``size`` rows of each sample (Zaremba et al. 2013)."""
    count = min(x.shape[0], y.shape[0]) // size
    if kernel.name in OF_DISTANCES:
        middle = centre(x, y)
        x, y = x - middle, y - middle
    x, y = x[: count * size], y[: count * size]
    z = torch.cat((x.reshape(count, size, -1), y.reshape(count, size, -1)), 1)
    products = product(z, z.mT)
    if kernel.name in OF_DISTANCES:
        norms = z.square().sum(2)
        sums = norms[:, :, None] + norms[:, None]
        least = 8 * torch.finfo(z.dtype).eps * sums.detach()
        values = of_squares(kernel, rates, (sums - 2 * products).clamp_min(0), least)
    else:
        values = of_products(kernel, products, z.shape[2])
    values = values.masked_fill(torch.eye(2 * size, dtype=torch.bool, device=z.device), 0)
    within = values[:, :size, :size].sum() + values[:, size:, size:].sum()
    return (within / (size * (size - 1)) - 2 * values[:, :size, size:].sum() / (size * size)) / count


def of_features(
    x: Tensor, y: Tensor, weights: tuple[Tensor, Tensor], rates: Tensor, frequencies: Tensor
) -> Tensor:
    """V-statistic of the kernels whose random Fourier features have (D, L) ``frequencies`` at rate 1.

    ``sum_b |mean phi_b(x) - mean phi_b(y)|^2``, phi_b being cosine and sine of ``sqrt(q_b) z w`` over
    ``sqrt(L)`` (Rahimi and Recht 2007), in O((N + M) D L) (FastMMD, Zhao and Meng 2015).
    """
    middle = centre(x, y)
    of_x, of_y = (x - middle) @ frequencies, (y - middle) @ frequencies
    value = x.new_zeros(())
    for rate in rates.to(x.dtype).sqrt().unbind():
        for wave in (torch.cos, torch.sin):
            means = weights[0] @ wave(rate * of_x) + weights[1] @ wave(rate * of_y)
            value = value + means.square().sum()
    return value / frequencies.shape[1]
