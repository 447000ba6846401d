"""The epilogues of the pairwise engine in Triton: one kernel, which a loss enters with a few lines.

A panel holds the products of some rows with all columns. A program takes a row of it: statistics of the row
where the loss needs them, then what each entry costs and its slope, in one more read. Slopes leave in the
dtype in which they are multiplied next. All arithmetic is float32.
"""

# Triton reads annotations at run time, so they are not postponed here.
import math

import torch
import triton
import triton.language as tl
from thawkit.kernels.arithmetic import add_exponentials, logistic, signed_logits, softmax_loss, softplus
from thawkit.kernels.launch import block_of, given
from thawkit.kernels.panel import Panel

_MOST_COLUMNS = 4096  # of a row at a time
_REGISTERS = 80  # a thread may have: left to itself, the compiler spills some to make room for a fourth block


@triton.jit
def _counting(raw, column, columns, row, own, own_score, KeyLabels, row_label, excluded, margin,
              LABELS: tl.constexpr, EXCLUDES: tl.constexpr, MARGIN: tl.constexpr):  # fmt: skip
    """Return which columns but the positive count, before the margin and after it."""
    counts = (column < columns) & (column != own)
    if EXCLUDES:
        counts = counts & (column != row + excluded)
    if LABELS != 0:
        label = tl.load(KeyLabels + column, mask=column < columns, other=0)
        if LABELS == 1:
            counts = counts & (label != row_label)
        else:
            counts = counts & (label == row_label)
    nearby = counts
    if MARGIN:
        nearby = tl.where(own >= 0, counts & ~(raw > own_score + margin), counts)
    return counts, nearby


@triton.jit
def _softmax(
    S, W, Scale, Bias, Target, RowLabels, KeyLabels, RowWeight, Loss, LogSum, Missing, Positive,
    Maximum, DScale, first, columns, s_stride, w_stride, offset, excluded, margin, factor,
    TARGET: tl.constexpr, BIAS: tl.constexpr, LABELS: tl.constexpr, EXCLUDES: tl.constexpr,
    MARGIN: tl.constexpr, ROW_WEIGHT: tl.constexpr, SUMS: tl.constexpr, STATISTICS: tl.constexpr,
    SLOPES: tl.constexpr, DSCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    here = tl.program_id(0)
    row = first + here
    scale = tl.load(Scale)
    scores = S + here.to(tl.int64) * s_stride
    own = row + offset
    if TARGET:
        # of a number beyond all columns half the bits may name one
        own = tl.minimum(tl.maximum(tl.load(Target + here), -1), columns).to(tl.int32)
    paired = own >= 0
    # a target that is no column has no number
    own_score = tl.load(scores + own, mask=paired & (own < columns), other=float("nan"))
    own_score = tl.where(paired, own_score, 0.0)
    positive = own_score * scale
    if BIAS:
        positive += tl.load(Bias + own, mask=paired & (own < columns), other=0.0)
    positive = tl.where(paired, positive, -float("inf"))
    row_label = 0
    if LABELS != 0:
        row_label = tl.load(RowLabels + here)

    maximum = -float("inf")
    beyond = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        raw = tl.load(scores + column, mask=column < columns, other=0.0)
        z = raw * scale
        if BIAS:
            z += tl.load(Bias + column, mask=column < columns, other=0.0)
        counts, nearby = _counting(
            raw, column, columns, row, own, own_score, KeyLabels, row_label, excluded, margin,
            LABELS, EXCLUDES, MARGIN,
        )  # fmt: skip
        if STATISTICS:
            beyond = tl.maximum(beyond, tl.max(tl.where(counts, z, -float("inf")), 0))
        maximum, total = add_exponentials(maximum, total, tl.where(nearby, z, -float("inf")), 0)
    larger, others, both, loss = softmax_loss(maximum, total, positive)
    log_sum = larger + tl.log(both)
    tl.store(Loss + here, tl.where(paired, loss, log_sum))
    if SUMS:
        tl.store(LogSum + here, log_sum)
        tl.store(Missing + here, others / both)
    if STATISTICS:
        tl.store(Positive + here, tl.where(paired, positive, float("nan")))
        tl.store(Maximum + here, tl.maximum(beyond, positive))

    if SLOPES or DSCALE:
        weight = tl.full([], 1.0, tl.float32) * factor
        if ROW_WEIGHT:
            weight *= tl.load(RowWeight + here)
        share = weight / both
        dscale = 0.0
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            raw = tl.load(scores + column, mask=column < columns, other=0.0)
            z = raw * scale
            if BIAS:
                z += tl.load(Bias + column, mask=column < columns, other=0.0)
            _, nearby = _counting(
                raw, column, columns, row, own, own_score, KeyLabels, row_label, excluded, margin,
                LABELS, EXCLUDES, MARGIN,
            )  # fmt: skip
            # a row of weight 0 has no gradient, whatever it holds
            slopes = tl.where(nearby, tl.exp(z - larger) * share, 0.0)
            slopes = tl.where(weight != 0.0, slopes, 0.0)
            if DSCALE:
                dscale += tl.sum(tl.where(slopes == 0.0, 0.0, slopes * (raw - own_score)), 0)
            if SLOPES:
                of_own = tl.where(weight != 0.0, -others * share, 0.0)
                slopes = tl.where(paired & (column == own), of_own, slopes)
                tl.store(W + here.to(tl.int64) * w_stride + column, slopes, mask=column < columns)
        if DSCALE:
            tl.store(DScale + here, dscale)


@triton.jit
def _column_sums(
    S, Scale, Maximum, Total, first, rows, columns, s_stride,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add a panel to each column's maximum and sum of exponentials, the diagonal left out."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    scale = tl.load(Scale)
    maximum = tl.load(Maximum + column, mask=inside, other=0.0)
    total = tl.load(Total + column, mask=inside, other=0.0)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        there = (row[:, None] < rows) & inside[None, :]
        at = row[:, None].to(tl.int64) * s_stride + column[None, :]
        z = tl.load(S + at, mask=there, other=0.0) * scale
        z = tl.where(there & (first + row[:, None] != column[None, :]), z, -float("inf"))
        maximum, total = add_exponentials(maximum, total, z, 0)
    tl.store(Maximum + column, maximum, mask=inside)
    tl.store(Total + column, total, mask=inside)


@triton.jit
def _entries(
    S, W, Scale, Bias, RowWeight, ColumnWeight, LogSum, Missing, ColumnLogSum, ColumnMissing,
    Loss, DScale, DBias, first, columns, s_stride, w_stride, offset, factor,
    KIND: tl.constexpr, PAIRED: tl.constexpr, ROW_WEIGHT: tl.constexpr, SLOPES: tl.constexpr,
    DSCALE: tl.constexpr, DBIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A loss whose slopes are known entry by entry: ``sigmoid``, or ``clip`` once its sums are known."""
    here = tl.program_id(0)
    scale = tl.load(Scale)
    scores = S + here.to(tl.int64) * s_stride
    own = first + here + offset
    if not PAIRED:
        own = -1
    weight = tl.full([], 1.0, tl.float32) * factor
    if ROW_WEIGHT:
        weight *= tl.load(RowWeight + here)
    if KIND == "clip":
        log_sum = tl.load(LogSum + here)
        missing = tl.load(Missing + here)
    else:
        bias = tl.load(Bias)
    loss = 0.0
    dscale = 0.0
    dbias = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        raw = tl.load(scores + column, mask=inside, other=0.0)
        if KIND == "clip":
            column_weight = factor
            if ROW_WEIGHT:
                column_weight = factor * tl.load(ColumnWeight + column, mask=inside, other=0.0)
            column_log_sum = tl.load(ColumnLogSum + column, mask=inside, other=0.0)
            column_missing = tl.load(ColumnMissing + column, mask=inside, other=0.0)
            of_row = tl.where(column == own, -missing, tl.exp(raw * scale - log_sum)) * weight
            of_column = tl.exp(raw * scale - column_log_sum)
            of_column = tl.where(column == own, -column_missing, of_column) * column_weight
            slopes = 0.5 * (of_row + of_column)
        else:
            sign, z = signed_logits(raw, column == own, scale, bias)
            loss += tl.sum(tl.where(inside, softplus(z), 0.0), 0)
            slopes = sign * logistic(z) * weight
        slopes = tl.where(inside, slopes, 0.0)
        if DSCALE:
            dscale += tl.sum(slopes * raw, 0)
        if DBIAS:
            dbias += tl.sum(slopes, 0)
        if SLOPES:
            tl.store(W + here.to(tl.int64) * w_stride + column, slopes, mask=inside)
    if KIND == "sigmoid":
        tl.store(Loss + here, loss)
    if DSCALE:
        tl.store(DScale + here, dscale)
    if DBIAS:
        tl.store(DBias + here, dbias)


def _block(panel: Panel) -> int:
    """Return how many columns of a row are worked on at a time."""
    return block_of(panel.scores.shape[1], _MOST_COLUMNS)


def _warps(block: int) -> int:
    return 8 if block > 2048 else 4


def softmax(
    panel: Panel,
    loss: torch.Tensor,
    *,
    target: torch.Tensor | None = None,
    offset: int = 0,
    bias: torch.Tensor | None = None,
    excluded: int = -1,
    row_labels: torch.Tensor | None = None,
    key_labels: torch.Tensor | None = None,
    labels: int = 0,
    margin: float = math.inf,
    log_sum: torch.Tensor | None = None,
    missing: torch.Tensor | None = None,
    positive: torch.Tensor | None = None,
    maximum: torch.Tensor | None = None,
    dscale: torch.Tensor | None = None,
) -> None:
    """Write what is wanted of a panel's softmax cross-entropies, ``RowSoftmaxArgs`` in csrc/cpu/kernels.h.

    Of each row (R,), float32: the loss; the log-sum-exp and 1 less the positive's softmax, both or neither;
    the positive's logit and the largest one, both or neither; its part of the scale's gradient.
    """
    s, block = panel.scores, _block(panel)
    if s.shape[0] == 0:
        return
    _softmax[(s.shape[0],)](
        s, given(panel.slopes, s), panel.scale, given(bias, s), given(target, s), given(row_labels, s),
        given(key_labels, s), given(panel.row_weight, s), loss, given(log_sum, s), given(missing, s),
        given(positive, s), given(maximum, s), given(dscale, s), panel.first, s.shape[1], *panel.strides(),
        offset, excluded, margin, panel.factor,
        TARGET=target is not None, BIAS=bias is not None, LABELS=labels, EXCLUDES=excluded >= 0,
        MARGIN=margin < math.inf, ROW_WEIGHT=panel.row_weight is not None, SUMS=log_sum is not None,
        STATISTICS=positive is not None, SLOPES=panel.slopes is not None, DSCALE=dscale is not None,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def column_sums(panel: Panel, maximum: torch.Tensor, total: torch.Tensor) -> None:
    """Add a panel's rows to the columns' maxima and sums (C,), from -inf and 0 on; row i has no column i."""
    s = panel.scores
    if s.numel() == 0:
        return
    _column_sums[(triton.cdiv(s.shape[1], 64),)](
        s, panel.scale, maximum, total, panel.first, *s.shape, s.stride(0), BLOCK_R=32, BLOCK_C=64
    )


def clip(
    panel: Panel,
    log_sum: torch.Tensor,
    missing: torch.Tensor,
    column_log_sum: torch.Tensor,
    column_missing: torch.Tensor,
    column_weight: torch.Tensor | None = None,
    dscale: torch.Tensor | None = None,
) -> None:
    """Write the slopes of CLIP's loss, whose log-sum-exps and 1 less the positives' softmax are known."""
    s, block = panel.scores, _block(panel)
    if s.shape[0] == 0:
        return
    _entries[(s.shape[0],)](
        s, given(panel.slopes, s), panel.scale, s, given(panel.row_weight, s), given(column_weight, s),
        log_sum, missing, column_log_sum, column_missing, s, given(dscale, s), s, panel.first, s.shape[1],
        *panel.strides(), 0, panel.factor, KIND="clip", PAIRED=True,
        ROW_WEIGHT=panel.row_weight is not None, SLOPES=panel.slopes is not None, DSCALE=dscale is not None,
        DBIAS=False, BLOCK=block, num_warps=_warps(block),
        maxnreg=_REGISTERS if block > 2048 else None,
    )  # fmt: skip


def sigmoid(
    panel: Panel,
    bias: torch.Tensor,
    offset: int | None,
    loss: torch.Tensor,
    dscale: torch.Tensor | None = None,
    dbias: torch.Tensor | None = None,
) -> None:
    """Write SigLIP's losses and slopes. Row i belongs to column i + offset; None: to none."""
    s, block = panel.scores, _block(panel)
    if s.shape[0] == 0:
        return
    _entries[(s.shape[0],)](
        s, given(panel.slopes, s), panel.scale, bias, given(panel.row_weight, s), s, s, s, s, s, loss,
        given(dscale, s), given(dbias, s), panel.first, s.shape[1], *panel.strides(),
        0 if offset is None else offset, panel.factor, KIND="sigmoid", PAIRED=offset is not None,
        ROW_WEIGHT=panel.row_weight is not None, SLOPES=panel.slopes is not None, DSCALE=dscale is not None,
        DBIAS=dbias is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
