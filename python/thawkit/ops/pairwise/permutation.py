"""Sums over the kernel matrix of two samples under permutations, without that matrix: schema, checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose, forced_backend, unavailable
from thawkit.ops.pairwise import cpu, cuda_mmd, reference, triton_mmd
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference.distances import centre
from thawkit.ops.pairwise.reference.kernels import OF_DISTANCES, Kernel, matrix
from thawkit.ops.pairwise.reference.mmd import largest_rate

KERNELS = {"cpu": cpu, "cuda": cuda_mmd, "triton": triton_mmd}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}


def permutation_sums(
    z: Tensor, gamma: Tensor, chosen: Tensor, first: int, *, doubling: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over ``K_ij = sum_b exp(-gamma_b |z_i - z_j|^2)``, i != j, for all permutations in one pass.

    There is no gradient.

    Args:
        z: (N, D) rows of both samples.
        gamma: (B,) positive numbers.
        chosen: (N, P) uint8, 0 or 1: which rows are in the first sample under each permutation.
        first: the first sample has rows 0 to ``first``.
        doubling: promise that ``gamma[b] == gamma[0] * 2**b``; one exponential then serves all bandwidths.

    Returns:
        float64: (P,) ``w^T K w`` and (P,) ``w^T K 1`` for each column w of ``chosen``, and the (N, 2) sums of
        each row of K over the first sample's columns and over the others.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    checks.matrix("z", z)
    if gamma.dim() != 1 or gamma.numel() == 0:
        raise ThawkitError(f"gamma must have shape (bandwidths,), got {tuple(gamma.shape)}")
    if chosen.dtype != torch.uint8 or chosen.dim() != 2 or chosen.shape[0] != z.shape[0]:
        raise ThawkitError(
            f"chosen must be uint8 of shape ({z.shape[0]}, permutations), "
            f"got {chosen.dtype} of shape {tuple(chosen.shape)}"
        )
    checks.same_device("chosen", chosen, "z", z)
    z, gamma = z.detach(), gamma.detach()
    backend = choose("permutation_sums", OBJECTIONS, z)
    if backend == "reference":
        with full_precision(z):
            return reference.permutation_sums(*_in_units(z, gamma), chosen, first)
    return _permutation_sums_op(z, gamma, chosen, first, doubling, backend)


_FARTHEST = 1e16  # rows of more have squares that float32 cannot add up


def _in_units(z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and rates in units near the bandwidths, powers of 2, which change no digit."""
    z, gamma = lifted(z), gamma.double()
    middle = float(gamma.max() * gamma.min()) ** 0.5  # of 1 / s^2
    exponent = round(math.log2(middle) / 2) if 0 < middle < math.inf else 0
    exponent = max(-120, min(120, exponent))  # a power that float32 holds
    return z * 2.0**exponent, (gamma * 2.0 ** (-2 * exponent)).clamp_max(largest_rate(z.dtype))


def _sums(
    z: Tensor, gamma: Tensor, chosen: Tensor, first: int, doubling: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel says of rows in units, so that their scale does not matter.

    Rows too far apart for float32 even so are left to the definition in float64.
    """
    rows, rates = _in_units(z, gamma)
    if rows.numel() and not bool(rows.abs().amax() <= _FARTHEST):
        return reference.permutation_sums(z.double(), gamma, chosen, first)
    return KERNELS[backend].permutation_sums(rows, rates, chosen, first, doubling)


def _fake(
    z: Tensor, gamma: Tensor, chosen: Tensor, first: int, doubling: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    permutations = z.new_empty(chosen.shape[1], dtype=torch.float64)
    return permutations, torch.empty_like(permutations), permutations.new_empty(z.shape[0], 2)


_permutation_sums_op = define(
    "permutation_sums(Tensor z, Tensor gamma, Tensor chosen, int first, bool doubling, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _sums,
    _fake,
)


def permutation_sums_of_kernel(
    z: Tensor, kernel: Kernel, rates: Tensor | None, chosen: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of :func:`permutation_sums` for any kernel of MMD, in float64 on every backend.

    Rows of the kernel matrix are made a few at a time, in O(N (D + P)) memory and at most 64 MiB for them.

    Args:
        z: (N, D) rows of both samples.
        kernel: with absolute rates.
        rates: (B,) its ``1 / s_b^2``, None where it has none.
        chosen: as for :func:`permutation_sums`.
        first: as for :func:`permutation_sums`.
    """
    checks.matrix("z", z)
    checks.same_device("chosen", chosen, "z", z)
    z = z.detach().double()
    if kernel.name in OF_DISTANCES:
        z = z - centre(z)  # distances do not see it, rounding does
    rates = None if rates is None else rates.detach()

    return reference.permutation_sums_of(z, lambda u, v: matrix(kernel, rates, u, v), chosen, first)


def subsets(rows: int, chosen: int, permutations: int, seed: int, first: int = 0) -> Tensor:
    """(rows, permutations) uint8 on the CPU: random subsets of ``chosen`` rows each, 1 where a row is in.

    The p-th depends on ``seed`` and ``first + p`` alone, and not on the backend.
    """
    if forced_backend() == "reference" or unavailable("cpu"):
        return reference.subsets(rows, chosen, permutations, seed, first)
    return cpu.subsets(rows, chosen, permutations, seed, first)
