"""The losses on distances with margins on CUDA without Triton: kernels that take what Triton's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thawkit.kernels.panel import Panel, Rows
from thawkit.ops._library import pointer, stream, takes_only
from thawkit.ops.pairwise import gpu_margin
from thawkit.ops.pairwise.cuda import fields

objection = takes_only("cuda")


def _fields(rows: Rows) -> tuple[Any, ...]:
    """Return those of ``MarginRows`` in csrc/cuda/kernels.h."""
    return (
        pointer(rows.norms),
        pointer(rows.column_norms),
        pointer(rows.first),
        pointer(rows.last),
        pointer(rows.number),
        pointer(rows.place),
        rows.itself,
        rows.cosine,
    )


def distances(panel: Panel, rows: Rows, out: Tensor) -> None:
    """Write the distances (R, C), which may go over the scores."""
    from thawkit import _C

    with torch.cuda.device(out.device):
        _C.distances_panel_cuda(fields(panel), _fields(rows), pointer(out), out.stride(0), stream())


def all_triplets(
    panel: Panel, rows: Rows, distances: Tensor, margin: Tensor, loss: Tensor, active: Tensor, weights: Tensor
) -> None:
    """Write losses, the numbers of triplets that cost something (int64), weights and their sums, of rows.

    The slopes are those of the panel, which may not lie over the distances.
    """
    from thawkit import _C

    _mine(_C.all_triplets_panel_cuda, panel, rows, distances, margin, loss, active, weights)


def semihard_triplets(
    panel: Panel, rows: Rows, distances: Tensor, margin: Tensor, loss: Tensor, active: Tensor, weights: Tensor
) -> None:
    """Write the same of one triplet for each positive. The panel's slopes must be 0."""
    from thawkit import _C

    _mine(_C.semihard_triplets_panel_cuda, panel, rows, distances, margin, loss, active, weights)


def _mine(kernel: Callable[..., None], panel: Panel, rows: Rows, distances: Tensor, *of_rows: Tensor) -> None:
    with torch.cuda.device(distances.device):
        kernel(
            fields(panel),
            _fields(rows),
            pointer(distances),
            distances.stride(0),
            *map(pointer, of_rows),
            stream(),
        )


def hardest_triplet(
    panel: Panel,
    rows: Rows,
    margin: Tensor,
    loss: Tensor,
    active: Tensor,
    columns: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """Write losses and whether they are above 0 (int64); of two columns (R, 2) int64 each, the weights.

    The panel's scores stay as they are: its other weights are 0.
    """
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.hardest_triplet_panel_cuda(
            fields(panel),
            _fields(rows),
            *map(pointer, (margin, loss, active, columns, weights)),
            stream(),
        )


def contrastive_pairs(
    panel: Panel,
    rows: Rows,
    margin: Tensor,
    negative_margin: Tensor,
    column_weight: Tensor | None,
    loss: Tensor,
    within: Tensor,
    between: Tensor,
    weights: Tensor,
) -> None:
    """Write half the losses of each row's pairs, how far those of its class and the others exceed margins.

    The weights count both halves, of the row and of the column, whose factors are ``column_weight`` where the
    rows have factors.
    """
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.contrastive_panel_cuda(
            fields(panel),
            _fields(rows),
            *map(pointer, (margin, negative_margin, column_weight, loss, within, between, weights)),
            stream(),
        )


_KERNELS = gpu_margin.Kernels(distances, all_triplets, semihard_triplets, hardest_triplet, contrastive_pairs)


def margin_loss(*arguments: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu_margin.margin_loss`."""
    return gpu_margin.margin_loss(_KERNELS, *arguments)
