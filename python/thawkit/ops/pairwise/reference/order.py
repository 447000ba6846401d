"""Order statistics of the squared distances of all pairs of rows, without their matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from thawkit.ops.pairwise.reference.distances import centre, squared_distances

FEW_ROWS = 1024  # whose distances may be stored instead, which is faster

_ENTRIES = 1 << 19  # of the matrix at a time
_DIGIT = 16  # bits that one pass over the matrix finds


def ranked_squared_distance(z: Tensor, rank: int, *, ordered: bool = False) -> Tensor:
    """The ``rank``-th from 0 on of the ``|z_i - z_j|^2``, without a gradient; NaN where one is.

    Over the pairs i < j or, where ``ordered``, over all (i, j), those of a row with itself included, which
    are 0. Numbers from 0 up have the order of their bits, of which each pass over the matrix of (N, D) rows
    finds 16: in O(N^2 D) time and O(N) memory.
    """
    z = z.detach()
    z = z - centre(z)  # distances do not see it, rounding does
    height = max(1, _ENTRIES // max(z.shape[0], 1))
    integers = torch.int64 if z.dtype == torch.float64 else torch.int32
    left = torch.full((), rank, dtype=torch.int64, device=z.device)
    found, no_number = torch.zeros_like(left), torch.zeros_like(left, dtype=torch.bool)
    for shift in range(torch.finfo(z.dtype).bits - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=z.device)
        for squares, counted in _panels(z, height, ordered):
            no_number = no_number | (squares.isnan() & counted).any()
            bits = squares.view(integers).to(torch.int64) >> shift
            counted = counted & (bits >> _DIGIT == found)
            digits = (bits & ((1 << _DIGIT) - 1)).flatten()
            counts.scatter_add_(0, digits, counted.flatten().to(torch.int64))
        upto = counts.cumsum(0)
        digit = torch.searchsorted(upto, left, right=True)
        left = left - (upto - counts).gather(0, digit[None])[0]
        found = (found << _DIGIT) + digit
    return found.to(integers).view(z.dtype).masked_fill(no_number, torch.nan)


def _panels(z: Tensor, height: int, ordered: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances of some rows to all, and which of them count."""
    column = torch.arange(z.shape[0], device=z.device)
    for top in range(0, z.shape[0], height):
        row = column[top : top + height, None]
        squares = squared_distances(z[top : top + height], z).abs()  # no -0
        if ordered:
            yield squares.masked_fill((column == row) & ~squares.isnan(), 0), torch.ones_like(column == row)
        else:
            yield squares, column > row
