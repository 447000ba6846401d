"""The pairwise engine on CUDA without Triton: the epilogues in CUDA C++, which take what Triton's do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thawkit.kernels.panel import Panel
from thawkit.ops._library import DTYPES, pointer, stream, takes_only
from thawkit.ops.pairwise import gpu

objection = takes_only("cuda")


def fields(panel: Panel) -> tuple[Any, ...]:
    """Return those of ``Panel`` in csrc/cuda/kernels.h."""
    stride, slope_stride = panel.strides()
    return (
        pointer(panel.scores),
        *panel.scores.shape,
        stride,
        pointer(panel.slopes),
        DTYPES[torch.float32 if panel.slopes is None else panel.slopes.dtype],
        slope_stride,
        panel.first,
        pointer(panel.scale),
        pointer(panel.row_weight),
        panel.factor,
    )


def softmax(
    panel: Panel,
    loss: Tensor,
    *,
    target: Tensor | None = None,
    offset: int = 0,
    bias: Tensor | None = None,
    excluded: int = -1,
    row_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    labels: int = 0,
    margin: float = math.inf,
    log_sum: Tensor | None = None,
    missing: Tensor | None = None,
    positive: Tensor | None = None,
    maximum: Tensor | None = None,
    dscale: Tensor | None = None,
) -> None:
    """Write what is wanted of a panel's softmax cross-entropies, ``RowSoftmaxArgs`` in csrc/cpu/kernels.h.

    Of each row (R,), float32: the loss; the log-sum-exp and 1 less the positive's softmax; the positive's
    logit and the largest one; its part of the scale's gradient.
    """
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.softmax_panel_cuda(
            fields(panel),
            pointer(target),
            offset,
            pointer(bias),
            excluded,
            pointer(row_labels),
            pointer(key_labels),
            labels,
            margin,
            pointer(loss),
            pointer(log_sum),
            pointer(missing),
            pointer(positive),
            pointer(maximum),
            pointer(dscale),
            stream(),
        )


def column_sums(panel: Panel, maximum: Tensor, total: Tensor) -> None:
    """Add a panel's rows to the columns' maxima and sums (C,), from -inf and 0 on; row i has no column i."""
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.column_sums_panel_cuda(fields(panel), pointer(maximum), pointer(total), stream())


def clip(
    panel: Panel,
    log_sum: Tensor,
    missing: Tensor,
    column_log_sum: Tensor,
    column_missing: Tensor,
    column_weight: Tensor | None = None,
    dscale: Tensor | None = None,
) -> None:
    """Write the slopes of CLIP's loss, whose log-sum-exps and 1 less the positives' softmax are known."""
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.clip_panel_cuda(
            fields(panel),
            pointer(log_sum),
            pointer(missing),
            pointer(column_log_sum),
            pointer(column_missing),
            pointer(column_weight),
            pointer(dscale),
            stream(),
        )


def sigmoid(
    panel: Panel,
    bias: Tensor,
    offset: int | None,
    loss: Tensor,
    dscale: Tensor | None = None,
    dbias: Tensor | None = None,
) -> None:
    """Write SigLIP's losses and slopes. Row i belongs to column i + offset; None: to none."""
    from thawkit import _C

    with torch.cuda.device(panel.scores.device):
        _C.sigmoid_panel_cuda(
            fields(panel),
            pointer(bias),
            0 if offset is None else offset,
            offset is not None,
            pointer(loss),
            pointer(dscale),
            pointer(dbias),
            stream(),
        )


_EPILOGUES = gpu.Epilogues(softmax, column_sums, clip, sigmoid)


def row_softmax(*arguments: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.row_softmax`."""
    return gpu.row_softmax(_EPILOGUES, *arguments)


def pair_loss(*arguments: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu.pair_loss`."""
    return gpu.pair_loss(_EPILOGUES, *arguments)
