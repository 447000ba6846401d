"""The pairwise engine on a GPU: panels of cuBLAS products, one epilogue kernel on each.

The epilogues are Triton's or CUDA C++'s, which take the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.ops.pairwise.common import full_precision, ignored_rows
from thawkit.ops.pairwise.cpu import check_shapes
from thawkit.ops.pairwise.gpu_panels import Operand, Slopes, floats, panels, total


class Fused(NamedTuple):
    """What makes the products too, and never stores them; None: panels do.

    Each takes the operands, the scale, SigLIP the bias and the offset, how slopes are stored, and memory for
    the scale's gradient a row, or None, SigLIP for the bias's too; it returns the losses, and adds up what
    gradients are wanted. InfoNCE is the plain form.
    """

    info_nce: Callable[[Operand, Operand, Tensor, Slopes, Tensor | None], Tensor] | None = None
    siglip: Callable[..., Tensor] | None = None
    clip: Callable[[Operand, Operand, Tensor, Slopes, Tensor | None], Tensor] | None = None
    nt_xent: Callable[[Operand, Tensor, Slopes, Tensor | None], Tensor] | None = None


class Epilogues(NamedTuple):
    """What runs on panels; ``kernels/epilogue.py`` says what each takes. ``fused`` needs none."""

    softmax: Callable[..., None]
    column_sums: Callable[..., None]
    clip: Callable[..., None]
    sigmoid: Callable[..., None]
    fused: Fused = Fused()


def row_softmax(
    epilogues: Epilogues,
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
        if plain and not need_statistics and epilogues.fused.info_nce is not None:
            rows["loss"] = epilogues.fused.info_nce(x, y, scale, slopes, rows.get("dscale"))
            made: Any = ()
        else:
            made = panels(x, y, scale, slopes, need_dq or need_dk or need_dbias)
        for here, panel in made:
            epilogues.softmax(
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


def pair_loss(
    epilogues: Epilogues,
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
            if epilogues.fused.siglip is not None:
                loss = epilogues.fused.siglip(of_x, of_y, scale, bias, offset, slopes, dscale, dbias)
            else:
                loss = _sigmoid(epilogues, of_x, of_y, scale, bias, slopes, offset, needs, dscale, dbias)
        elif y is None:
            if epilogues.fused.nt_xent is not None:
                loss = epilogues.fused.nt_xent(of_x, scale, slopes, dscale)
            else:
                loss = _nt_xent(epilogues, of_x, scale, slopes, needs, dscale)
        elif epilogues.fused.clip is not None:
            loss = epilogues.fused.clip(of_x, of_y, scale, slopes, dscale)
        else:
            loss = _clip(epilogues, of_x, of_y, scale, slopes, needs, dscale)
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
    epilogues: Epilogues,
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
    loss = floats(x.x)
    for here, panel in panels(x, y, scale, slopes, backward):
        epilogues.sigmoid(panel, bias, offset, loss[here], _part(dscale, here), _part(dbias, here))
    return loss


def _nt_xent(
    epilogues: Epilogues, z: Operand, scale: Tensor, slopes: Slopes, backward: bool, dscale: Tensor | None
) -> Tensor:
    rows = z.rows.shape[0]
    loss = floats(z.x)
    partner = torch.arange(rows, device=z.x.device).roll(rows // 2)
    for here, panel in panels(z, z, scale, slopes, backward):
        epilogues.softmax(panel, loss[here], target=partner[here], excluded=0, dscale=_part(dscale, here))
    return loss


def _clip(
    epilogues: Epilogues,
    x: Operand,
    y: Operand,
    scale: Tensor,
    slopes: Slopes,
    backward: bool,
    dscale: Tensor | None,
) -> Tensor:
    """Both directions share the products: first the sums of rows and columns, then the slopes."""
    loss, log_sum, missing, positive, maximum, largest = (floats(x.x) for _ in range(6))
    largest.fill_(-torch.inf)  # of the columns, the diagonal left out, and so is their sum
    total = torch.zeros_like(largest)
    for here, panel in panels(x, y, scale, slopes, False):
        known = panel.scores if panel.scores.shape[0] == loss.shape[0] else None
        epilogues.column_sums(panel, largest, total)
        epilogues.softmax(
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
            epilogues.clip(
                panel,
                log_sum[here],
                missing[here],
                column_log_sum,
                column_missing,
                slopes.rows,
                _part(dscale, here),
            )
    return (loss + of_columns) / 2
