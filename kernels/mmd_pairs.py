"""What the epilogues of MMD work on, in Triton or in CUDA C++."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KINDS = ("rbf", "doubling", "laplace", "imq", "energy", "product")
DIGIT = 11  # bits of a squared distance that one pass finds


@dataclass(frozen=True)
class Layer:
    """A layer's kernel, and what is wanted of it.

    Attributes:
        kind: one of ``KINDS``; ``doubling`` is ``rbf`` whose rates are the first one's times 2, 4 and so on.
        count: of bandwidths, of ``product`` the degree.
        sloped: whether slopes are wanted.
        learned: whether the derivatives by the rates are wanted.
    """

    kind: str
    count: int
    sloped: bool = False
    learned: bool = False


@dataclass(frozen=True)
class Pairs:
    """What all tiles share: the rows of both samples, one after the other, and what their pairs count.

    Attributes:
        layers: of L kernels, which multiply.
        norms: (L, N) float32 squared norms of the rows.
        first_numbers: (L, B) float32 ``first`` of csrc/cpu/mmd_kernels.h, of ``product`` the scale.
        second_numbers: (L, B) float32 ``second``, of ``product`` the offset.
        rounding: squares of no more than that many norms of both rows are 0 where the root is taken.
        weights: (N,) float32; a pair counts their product
        same: (N,) float32 factors of the pairs within a sample, equal for both rows of a pair that counts; or
            None.
        labels: (N,) int32 of rows that pair only with their like, or None.
        first: the first sample has rows 0 to ``first``.
        diagonal: whether the pairs of a row with itself count.
        value: (P,) float64 to which programs add what their pairs are worth; P is of ``programs``.
        rate_sums: (P, L, B) float64, the same of the derivatives by the rates; None: nobody asked.
    """

    layers: tuple[Layer, ...]
    norms: torch.Tensor
    first_numbers: torch.Tensor
    second_numbers: torch.Tensor
    rounding: float
    weights: torch.Tensor
    same: torch.Tensor | None
    labels: torch.Tensor | None
    first: int
    diagonal: bool
    value: torch.Tensor
    rate_sums: torch.Tensor | None = None
