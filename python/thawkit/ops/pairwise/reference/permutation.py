"""The definition of what a permutation test asks of a kernel matrix, and of its random subsets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from thawkit.ops.pairwise.reference.distances import centre, squared_distances

_ENTRIES = 1 << 20  # of the kernel matrix, and of the choices as numbers, at a time


def permutation_sums(z: Tensor, gamma: Tensor, chosen: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over ``K_ij = sum_b exp(-gamma_b |z_i - z_j|^2)`` without its diagonal.

    See :func:`permutation_sums_of` for arguments and results.
    """
    z = z - centre(z)  # distances do not see it, rounding does
    gamma = gamma.to(z.dtype)

    def kernel(rows: Tensor, columns: Tensor) -> Tensor:
        d2 = squared_distances(rows, columns)
        return sum((torch.exp(-g * d2) for g in gamma.unbind()), torch.zeros_like(d2))

    return permutation_sums_of(z, kernel, chosen, first)


def permutation_sums_of(
    z: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], chosen: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same sums of any symmetric kernel, whose matrix is made a few rows at a time, from the diagonal on.

    Args:
        z: (N, D) rows of both samples.
        kernel: from rows and others to their kernel values, (rows, others).
        chosen: (N, P) 0 or 1: which rows are in the first sample under each permutation.
        first: the first sample has rows 0 to ``first``.

    Returns:
        float64: (P,) ``w^T K w`` and (P,) ``w^T K 1`` for each column w of ``chosen``, and the (N, 2) sums of
        each row of K over the first sample's columns and over the others.
    """
    count, permutations = chosen.shape
    height = width = max(1, _ENTRIES // max(count, 1))
    within = torch.zeros(permutations, dtype=torch.float64, device=z.device)
    from_chosen = torch.zeros_like(within)
    sums = within.new_zeros(count, 2)
    for top in range(0, count, height):
        bottom = min(top + height, count)
        values = kernel(z[top:bottom], z[top:]).clone()
        values.diagonal().zero_()
        seam = max(first - top, 0)
        sums[top:bottom] += torch.stack([v.double().sum(1) for v in (values[:, :seam], values[:, seam:])], 1)
        later = values[:, bottom - top :]  # whose mirror images are in no panel
        sums[bottom:] += torch.stack([v.double().sum(0) for v in (later[:seam], later[seam:])], 1)
        later *= 2
        for left in range(0, permutations, width):
            columns = chosen[top:, left : left + width].to(z.dtype)
            own = columns[: bottom - top].double()
            within[left : left + width] += (own * (values @ columns)).sum(0)
    totals = sums.sum(1)
    for left in range(0, permutations, width):
        from_chosen[left : left + width] = totals @ chosen[:, left : left + width].double()
    return within, from_chosen, sums


def subsets(rows: int, chosen: int, permutations: int, seed: int, first: int = 0) -> Tensor:
    """(rows, permutations) uint8: random subsets of ``chosen`` rows each, 1 where a row is in.

    The partial shuffle of Fisher and Yates, of the smaller side, with the random numbers of SplitMix64
    (Steele, Lea and Flood 2014); permutation p has those of the seed and ``first + p``.
    """
    golden, mask = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFFFFFFFF)
    inverted = chosen > rows - chosen
    order = np.tile(np.arange(rows), (permutations, 1))
    member = np.full((rows, permutations), int(inverted), dtype=np.uint8)
    each = np.arange(permutations)
    with np.errstate(over="ignore"):
        numbers = np.arange(first + 1, first + permutations + 1, dtype=np.uint64)
        counter = _mixed(np.uint64(seed) + _mixed(golden * numbers))
        for i in range(min(chosen, rows - chosen)):
            counter = counter + golden
            draw = (_mixed(counter) >> np.uint64(32)) * np.uint64(rows - i) >> np.uint64(32)
            place = i + (draw & mask).astype(np.int64)
            row = order[each, place]
            order[each, place] = order[:, i]
            member[row, each] = int(not inverted)
    return torch.from_numpy(member)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
