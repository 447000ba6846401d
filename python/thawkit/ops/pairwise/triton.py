"""The pairwise engine in Triton: panels of cuBLAS products, one epilogue kernel on each.

Small problems of half precision take a kernel that makes the products itself and never stores them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import dtype_objection, empty
from thawkit.ops.pairwise import gpu
from thawkit.ops.pairwise.gpu_panels import Operand, Slopes

objection = dtype_objection


def row_softmax(q: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.row_softmax`."""
    return gpu.row_softmax(
        _epilogues()._replace(info_nce=_info_nce_fused if _fits_fused(q) else None), q, *rest
    )


def pair_loss(*arguments: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.pair_loss`."""
    return gpu.pair_loss(_epilogues(), *arguments)


def _epilogues() -> gpu.Epilogues:
    from thawkit.kernels import epilogue

    return gpu.Epilogues(epilogue.softmax, epilogue.column_sums, epilogue.clip, epilogue.sigmoid)


def _fits_fused(q: Tensor) -> bool:
    """Whether the products are to be made anew instead of stored.

    For few features the products are cheap and moving their results is not: by the counts of bytes and
    operations; not yet measured on a GPU.
    """
    from thawkit.kernels import pairwise as kernels

    return q.dtype != torch.float32 and q.shape[1] <= kernels.MOST_FEATURES


def _info_nce_fused(
    x: Operand, y: Operand, scale: Tensor, slopes: Slopes, loss: Tensor, dscale: Tensor | None
) -> None:
    """Write the losses, and add up what gradients are wanted."""
    from thawkit.kernels import pairwise as kernels

    if loss.numel() == 0:
        return
    maximum, total, missing = (torch.empty_like(loss) for _ in range(3))
    kernels.info_nce_forward(x.rows, y.rows, scale, loss, maximum, total, missing)
    weights = torch.full_like(loss, slopes.factor) if slopes.rows is None else slopes.rows * slopes.factor
    statistics = scale, maximum, total, missing, weights
    if x.gradient is not None or dscale is not None:
        kernels.info_nce_backward_queries(
            x.rows, y.rows, *statistics, _or_empty(x.gradient, loss), _or_empty(dscale, loss)
        )
    if y.gradient is not None:
        kernels.info_nce_backward_keys(x.rows, y.rows, *statistics, y.gradient)


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return empty(like) if x is None else x
