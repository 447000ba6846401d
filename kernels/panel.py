"""What an epilogue of the pairwise engine works on, in Triton or in CUDA C++."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Panel:
    """Products of some rows with all columns, and where their slopes go.

    Attributes:
        scores: (R, C) float32 products, without the scale; rows at any distance.
        slopes: (R, C) of any dtype, may be ``scores``; None: nobody asked.
        first: number of the first row.
        scale: float32 scalar.
        row_weight: (R,) float32 factors of the slopes, or None.
        factor: of all slopes and of what is summed from them.
    """

    scores: torch.Tensor
    slopes: torch.Tensor | None
    first: int
    scale: torch.Tensor
    row_weight: torch.Tensor | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        for x in (self.scores, self.slopes):
            assert x is None or x.stride(1) == 1 or x.shape[1] == 1

    def strides(self) -> tuple[int, int]:
        """Return those of the rows of scores and slopes."""
        return self.scores.stride(0), 0 if self.slopes is None else self.slopes.stride(0)


@dataclass(frozen=True)
class Rows:
    """What the margin losses know of a panel's rows, and of columns in the order of their classes.

    Attributes:
        norms: (R,) float32 squared lengths; anything where distances are of cosines, and so below.
        column_norms: (C,).
        first: (R,) int32, where the row's class begins among the columns, and
        last: (R,) int32, where it ends.
        number: (C,) int32: of equally far columns the one of the least number is taken; ascending in a class.
        place: (C,) int32: the column of each number.
        itself: whether row i is column i, which is then no partner of it.
        cosine: whether distances are 1 less the product, or Euclidean.
    """

    norms: torch.Tensor
    column_norms: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    number: torch.Tensor
    place: torch.Tensor
    itself: bool
    cosine: bool
