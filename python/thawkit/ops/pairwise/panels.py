"""What is made of a matrix of pairs row by row, a few rows at a time, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_ENTRIES = 1 << 20  # of the matrix at a time


def in_panels(of_rows: Callable[[int, int], Tensor], rows: int, columns: int) -> Tensor:
    """Concatenate ``of_rows(top, bottom)``, which works on so many rows of a matrix, to (rows, ...).

    Several panels are computed anew in the backward pass, so that one at a time is in memory; derivatives of
    any order go through. ``of_rows`` must give the same result each time.
    """
    height = max(1, _ENTRIES // max(columns, 1))
    if rows <= height:
        return of_rows(0, rows)
    return torch.cat(
        [
            checkpoint(of_rows, top, min(top + height, rows), use_reentrant=False, preserve_rng_state=False)
            for top in range(0, rows, height)
        ]
    )
