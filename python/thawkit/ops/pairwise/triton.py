"""The pairwise engine in Triton: panels of cuBLAS products, one epilogue kernel on each.

InfoNCE, NT-Xent, CLIP and SigLIP of half precision and few features take kernels that make the products
themselves and never store them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import dtype_objection, empty
from thawkit.ops.dispatch import memory
from thawkit.ops.pairwise import gpu
from thawkit.ops.pairwise.gpu_panels import Operand, Slopes, floats

objection = dtype_objection


def row_softmax(q: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.row_softmax`."""
    return gpu.row_softmax(_epilogues(q), q, *rest)


def pair_loss(x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.pair_loss`."""
    return gpu.pair_loss(_epilogues(x), x, *rest)


def _epilogues(rows: Tensor) -> gpu.Epilogues:
    from thawkit.kernels import epilogue

    fused = {name: function for name, function in _FUSED.items() if _fits_fused(rows, name)}
    return gpu.Epilogues(
        epilogue.softmax, epilogue.column_sums, epilogue.clip, epilogue.sigmoid, gpu.Fused(**fused)
    )


# So many features at most, a power of two: above, storing the scores takes less time than making them anew,
# by the counts of bytes and operations in tests/gpu_proof/test_triton_floor.py; not yet measured on a GPU.
FEW_FEATURES = {"info_nce": 128, "siglip": 64, "clip": 128, "nt_xent": 128}


def _fits_fused(rows: Tensor, loss: str) -> bool:
    """Whether the products are to be made anew instead of stored.

    For few features the products are cheap and moving their results is not; it takes the least memory, too.
    """
    from thawkit.kernels import pairwise as kernels

    most = kernels.MOST_FEATURES if memory() == "minimal" else FEW_FEATURES[loss]
    return rows.dtype != torch.float32 and rows.shape[1] <= most


def _weights(slopes: Slopes, loss: Tensor) -> Tensor:
    return torch.full_like(loss, slopes.factor) if slopes.rows is None else slopes.rows * slopes.factor


def _sums(loss: Tensor, weight: Tensor) -> Any:
    from thawkit.kernels import pairwise as kernels

    maximum, total, missing = (torch.empty_like(loss) for _ in range(3))
    return kernels.Sums(maximum, total, missing, weight)


def _info_nce(x: Operand, y: Operand, scale: Tensor, slopes: Slopes, dscale: Tensor | None) -> Tensor:
    from thawkit.kernels import pairwise as kernels

    loss = floats(x.x)
    if loss.numel() == 0:
        return loss
    sums = _sums(loss, _weights(slopes, loss))
    kernels.softmax_forward(x.rows, y.rows, scale, loss, sums)
    if x.gradient is not None or dscale is not None:
        dx = _or_empty(x.gradient, loss)
        kernels.info_nce_backward_queries(x.rows, y.rows, scale, sums, dx, _or_empty(dscale, loss))
    if y.gradient is not None:
        kernels.info_nce_backward_keys(x.rows, y.rows, scale, sums, y.gradient)
    return loss


def _siglip(
    x: Operand,
    y: Operand,
    scale: Tensor,
    bias: Tensor,
    offset: int | None,
    slopes: Slopes,
    dscale: Tensor | None,
    dbias: Tensor | None,
) -> Tensor:
    from thawkit.kernels import pairwise as kernels

    loss = floats(x.x)
    numbers = x.rows, y.rows, scale, bias, offset
    kernels.siglip_forward(*numbers, loss)
    weight = _weights(slopes, loss)
    if any(wanted is not None for wanted in (x.gradient, dscale, dbias)):
        out = (_or_empty(wanted, loss) for wanted in (x.gradient, dscale, dbias))
        kernels.siglip_backward_rows(*numbers, weight, *out)
    if y.gradient is not None:
        kernels.siglip_backward_columns(*numbers, weight, y.gradient)
    return loss


def _clip(x: Operand, y: Operand, scale: Tensor, slopes: Slopes, dscale: Tensor | None) -> Tensor:
    from thawkit.kernels import pairwise as kernels

    of_rows, of_columns = floats(x.x), floats(x.x)
    if of_rows.numel() == 0:
        return of_rows
    weight = _weights(slopes, of_rows) / 2
    rows, columns = _sums(of_rows, weight), _sums(of_columns, weight)
    kernels.softmax_forward(x.rows, y.rows, scale, of_rows, rows)
    kernels.softmax_forward(y.rows, x.rows, scale, of_columns, columns)
    if x.gradient is not None or (dscale is not None and y.gradient is None):
        dx = _or_empty(x.gradient, weight)
        kernels.clip_backward(x.rows, y.rows, scale, rows, columns, dx, _or_empty(dscale, weight))
        dscale = None
    if y.gradient is not None:
        dscale = _or_empty(dscale, weight)  # either side's rows add up to the same
        kernels.clip_backward(y.rows, x.rows, scale, columns, rows, y.gradient, dscale)
    return (of_rows + of_columns) / 2


def _nt_xent(z: Operand, scale: Tensor, slopes: Slopes, dscale: Tensor | None) -> Tensor:
    from thawkit.kernels import pairwise as kernels

    loss = floats(z.x)
    if loss.numel() == 0:
        return loss
    sums = _sums(loss, _weights(slopes, loss))
    kernels.softmax_forward(z.rows, z.rows, scale, loss, sums, loss.numel() // 2)
    if z.gradient is not None or dscale is not None:
        dz = _or_empty(z.gradient, loss)
        kernels.nt_xent_backward(z.rows, scale, sums, dz, _or_empty(dscale, loss))
    return loss


_FUSED: dict[str, Callable[..., Tensor]] = {
    "info_nce": _info_nce,
    "siglip": _siglip,
    "clip": _clip,
    "nt_xent": _nt_xent,
}


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return empty(like) if x is None else x
