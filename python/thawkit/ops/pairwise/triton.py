"""The pairwise engine in Triton: panels of cuBLAS products, one epilogue kernel on each.

Small problems of half precision take a kernel that makes the products itself and never stores them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import dtype_objection, empty
from thawkit.ops.pairwise.common import full_precision, ignored_rows
from thawkit.ops.pairwise.cpu import check_shapes
from thawkit.ops.pairwise.triton_panels import Operand, Slopes, floats, panels, total

objection = dtype_objection


def row_softmax(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    offset: int,
    excluded: int,
    labels: int,
    margin: float,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
    need_dbias: bool,
    need_statistics: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum, positive and largest logits (float32), and the gradients.

    A target that is no column gives NaN: to look for it would wait for the device.
    """
    from thawkit.kernels import epilogue

    check_shapes(q.shape[0], k.shape[0], offset, target, bias, row_labels, key_labels, row_weight)
    with full_precision(q):
        ignored = ignored_rows(row_weight, q)
        if ignored is not None:
            q = q.masked_fill(ignored[:, None], 0)
        scale = scale.to(device=q.device, dtype=torch.float32)
        x, y = Operand(q, normalize, need_dq), Operand(k, normalize, need_dk)
        slopes = Slopes(q, row_weight, weight)
        options: dict[str, Any] = {
            "bias": None if bias is None else bias.float().contiguous(),
            "key_labels": None if key_labels is None else key_labels.contiguous(),
            **{"offset": offset, "excluded": excluded, "labels": labels, "margin": margin},
        }
        rows: dict[str, Any] = {name: floats(q) for name in ("loss", *_STATISTICS[: 2 * need_statistics])}
        if need_dscale:
            rows["dscale"] = floats(q)
        dbias = rows["loss"].new_zeros(k.shape[0]) if need_dbias else None
        plain = (bias, target, excluded, labels, offset) == (None, None, -1, 0, 0) and margin == math.inf
        if plain and not need_statistics and _fits_fused(q):
            _info_nce_fused(x, y, scale, slopes, rows["loss"], rows.get("dscale"))
            parts: Any = ()
        else:
            parts = panels(x, y, scale, slopes, need_dq or need_dk or need_dbias)
        for here, panel in parts:
            epilogue.softmax(
                panel,
                target=None if target is None else target[here].contiguous(),
                row_labels=None if row_labels is None else row_labels[here].contiguous(),
                **options,
                **{name: of_rows[here] for name, of_rows in rows.items()},
            )
            if dbias is not None and panel.slopes is not None:
                dbias += panel.slopes.sum(0, dtype=torch.float32)
        loss = rows["loss"]
        if ignored is not None:
            loss = loss.masked_fill(ignored, torch.nan)
        return (
            loss,
            total(loss, row_weight, weight),
            rows.get("positive"),
            rows.get("maximum"),
            x.through(slopes.shared * scale),
            y.through(slopes.shared * scale),
            rows["dscale"].sum() * slopes.shared if need_dscale else None,
            None if dbias is None else dbias * slopes.shared,
        )


_STATISTICS = "positive", "maximum"


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
    log_sum, missing = torch.empty_like(loss), torch.empty_like(loss)
    kernels.info_nce_forward(x.rows, y.rows, scale, loss, log_sum, missing)
    weights = torch.full_like(loss, slopes.factor) if slopes.rows is None else slopes.rows * slopes.factor
    statistics = scale, log_sum, missing, weights
    if x.gradient is not None or dscale is not None:
        kernels.info_nce_backward_queries(
            x.rows, y.rows, *statistics, _or_empty(x.gradient, loss), _or_empty(dscale, loss)
        )
    if y.gradient is not None:
        kernels.info_nce_backward_keys(x.rows, y.rows, *statistics, y.gradient)


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return empty(like) if x is None else x


def pair_loss(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    kind: int,
    offset: int | None,
    normalize: bool,
    need_dx: bool,
    need_dy: bool,
    need_dscale: bool,
    need_dbias: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum (float32), and the gradients of the latter."""
    with full_precision(x):
        scale = scale.to(device=x.device, dtype=torch.float32)
        of_x = Operand(x, normalize, need_dx)
        of_y = of_x if y is None else Operand(y, normalize, need_dy)
        slopes = Slopes(x, row_weight, weight)
        needs = need_dx or need_dy
        dscale = floats(x) if need_dscale else None
        dbias = floats(x) if need_dbias else None
        if bias is not None:
            bias = bias.to(device=x.device, dtype=torch.float32)
            loss = _sigmoid(of_x, of_y, scale, bias, slopes, offset, needs, dscale, dbias)
        elif y is None:
            loss = _nt_xent(of_x, scale, slopes, needs, dscale)
        else:
            loss = _clip(of_x, of_y, scale, slopes, needs, dscale)
        return (
            loss,
            total(loss, row_weight, weight),
            of_x.through(slopes.shared * scale),
            None if y is None else of_y.through(slopes.shared * scale),
            None if dscale is None else dscale.sum() * slopes.shared,
            None if dbias is None else dbias.sum() * slopes.shared,
        )


def _part(of_rows: Tensor | None, here: slice) -> Tensor | None:
    return None if of_rows is None else of_rows[here]


def _sigmoid(
    x: Operand,
    y: Operand,
    scale: Tensor,
    bias: Tensor,
    slopes: Slopes,
    offset: int | None,
    backward: bool,
    dscale: Tensor | None,
    dbias: Tensor | None,
) -> Tensor:
    from thawkit.kernels import epilogue

    loss = floats(x.x)
    for here, panel in panels(x, y, scale, slopes, backward):
        epilogue.sigmoid(panel, bias, offset, loss[here], _part(dscale, here), _part(dbias, here))
    return loss


def _nt_xent(z: Operand, scale: Tensor, slopes: Slopes, backward: bool, dscale: Tensor | None) -> Tensor:
    from thawkit.kernels import epilogue

    rows = z.rows.shape[0]
    loss = floats(z.x)
    partner = torch.arange(rows, device=z.x.device).roll(rows // 2)
    for here, panel in panels(z, z, scale, slopes, backward):
        epilogue.softmax(panel, loss[here], target=partner[here], excluded=0, dscale=_part(dscale, here))
    return loss


def _clip(
    x: Operand, y: Operand, scale: Tensor, slopes: Slopes, backward: bool, dscale: Tensor | None
) -> Tensor:
    """Both directions share the products: first the sums of rows and columns, then the slopes."""
    from thawkit.kernels import epilogue

    loss, log_sum, missing, positive, maximum, largest = (floats(x.x) for _ in range(6))
    largest.fill_(-torch.inf)  # of the columns, the diagonal left out, and so is their sum
    total = torch.zeros_like(largest)
    for here, panel in panels(x, y, scale, slopes, False):
        known = panel.scores if panel.scores.shape[0] == loss.shape[0] else None
        epilogue.column_sums(panel, largest, total)
        epilogue.softmax(
            panel,
            loss[here],
            log_sum=log_sum[here],
            missing=missing[here],
            positive=positive[here],
            maximum=maximum[here],
        )
    larger = torch.maximum(largest, positive)
    others = total * (largest - larger).exp()
    both = others + (positive - larger).exp()
    of_columns = torch.where(positive >= largest, others.log1p(), both.log() + (larger - positive))
    column_log_sum, column_missing = larger + both.log(), others / both
    if backward or dscale is not None:
        for here, panel in panels(x, y, scale, slopes, backward, known if loss.numel() else None):
            epilogue.clip(
                panel,
                log_sum[here],
                missing[here],
                column_log_sum,
                column_missing,
                slopes.rows,
                _part(dscale, here),
            )
    return (loss + of_columns) / 2
