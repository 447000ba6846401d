"""What the epilogues of retrieval work on, in Triton or in CUDA C++, and the keys that they write."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NONE = -(1 << 63)  # the key of no column
LAST = (1 << 31) - 1  # less the column's number are the low bits of a key


@dataclass(frozen=True)
class Scores:
    """Products of some rows with some columns of the gallery, and what else their similarities need.

    Attributes:
        products: (R, C) float32, rows at any distance.
        first: number of the first column.
        excluded: (R,) int64, the number of a column that each row leaves out, or None.
        norms: (R,) float32 squared lengths, where similarities are minus squared distances; else None, and
        column_norms: (C,).
    """

    products: torch.Tensor
    first: int
    excluded: torch.Tensor | None = None
    norms: torch.Tensor | None = None
    column_norms: torch.Tensor | None = None

    def __post_init__(self) -> None:
        assert self.products.stride(1) == 1 or self.products.shape[1] == 1
