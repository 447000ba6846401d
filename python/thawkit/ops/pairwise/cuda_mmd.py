"""MMD on CUDA without Triton: the epilogues in CUDA C++, which take what Triton's do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.kernels.mmd_pairs import KINDS, Pairs
from thawkit.ops._library import DTYPES, pointer, stream, takes_only
from thawkit.ops.pairwise import gpu_mmd

objection = takes_only("cuda")


def programs(rows: int, columns: int, layers: int) -> int:
    """Return how many numbers a tile adds its sums to: one a row."""
    return rows


def _pairs(of: Pairs) -> tuple[Any, ...]:
    """Return the fields of ``MMDPairs`` in csrc/cuda/kernels.h."""
    return (
        [(KINDS.index(layer.kind), layer.count, layer.sloped) for layer in of.layers],
        of.norms.shape[1],
        pointer(of.norms),
        pointer(of.first_numbers),
        pointer(of.second_numbers),
        of.first_numbers.shape[1],
        of.rounding,
        pointer(of.weights),
        pointer(of.same),
        pointer(of.labels),
        of.first,
        of.diagonal,
    )


def _tile(scores: Tensor, top: int, left: int) -> tuple[Any, ...]:
    """Return those of ``MMDTile``, of scores (layers, rows, columns)."""
    _, rows, columns = scores.shape
    assert scores.stride(2) == 1 or columns == 1
    return pointer(scores), rows, columns, *scores.stride()[:2], top, left


def tile(pairs: Pairs, scores: Tensor, slopes: Tensor | None, top: int, left: int, times: float) -> None:
    """Add what the pairs of some rows with some others are worth, and write the slopes that are wanted.

    See :func:`thawkit.kernels.mmd.tile`.
    """
    from thawkit import _C

    for i, layer in enumerate(pairs.layers):
        if layer.learned:
            rates(pairs, scores, i, top, left, times)  # before slopes go over scores
    w = scores if slopes is None else slopes
    assert w.stride(2) == 1 or w.shape[2] == 1
    with torch.cuda.device(scores.device):
        _C.mmd_tile_cuda(
            _pairs(pairs),
            _tile(scores, top, left),
            pointer(slopes),
            DTYPES[w.dtype],
            *w.stride()[:2],
            times,
            pointer(pairs.value),
            stream(),
        )


def rates(pairs: Pairs, scores: Tensor, layer: int, top: int, left: int, times: float) -> None:
    """Add what the derivatives by the rates of one layer are made of; see :func:`tile`."""
    from thawkit import _C

    assert pairs.rate_sums is not None
    sums = pairs.rate_sums[:, layer]
    with torch.cuda.device(scores.device):
        _C.mmd_rates_cuda(
            _pairs(pairs), _tile(scores, top, left), layer, times, pointer(sums), sums.stride(0), stream()
        )


def values(pairs: Pairs, scores: Tensor, top: int, left: int) -> None:
    """Write the kernel of the one layer over its scores (R, C), 0 for a row with itself; see :func:`tile`."""
    from thawkit import _C

    with torch.cuda.device(scores.device):
        _C.mmd_values_cuda(_pairs(pairs), _tile(scores[None], top, left), stream())


def count_digits(
    scores: Tensor,
    norms: Tensor,
    found: Tensor,
    counts: Tensor,
    shift: int,
    top: int,
    left: int,
    rounding: float,
) -> None:
    """Count the pairs i < j of a tile by one digit of ``DIGIT`` bits of their squared distances.

    See :func:`thawkit.kernels.mmd.count_digits`.
    """
    from thawkit import _C

    with torch.cuda.device(scores.device):
        _C.mmd_digits_cuda(
            _tile(scores[None], top, left),
            pointer(norms),
            pointer(found),
            pointer(counts),
            shift,
            rounding,
            stream(),
        )


_EPILOGUES = gpu_mmd.Epilogues(programs, tile, values, count_digits)


def mmd(*arguments: Any) -> list[Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.mmd`."""
    return gpu_mmd.mmd(_EPILOGUES, *arguments)


def permutation_sums(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.permutation_sums`."""
    return gpu_mmd.permutation_sums(_EPILOGUES, *arguments)


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.median_squared_distance`."""
    return gpu_mmd.median_squared_distance(_EPILOGUES, x, y)
