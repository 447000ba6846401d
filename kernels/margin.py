"""Losses on distances with margins, in Triton: triplets mined of each row, contrastive pairs.

A panel holds the products of some rows with all columns, and a program takes a row of it. Columns are in the
order of their classes, so that those of a row's class lie together. Slopes leave as weights: the loss's
derivative by half the square of the distance, or by the cosine's complement, so that a gradient is a product.
What is mined turns on comparisons, so that all is float32 and no root is an approximation.
"""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl
from thawkit.kernels.launch import block_of, given
from thawkit.kernels.panel import Panel, Rows

_COLUMNS = 1024  # of a row at a time, where each is looked at once
_COMPARED = 512  # and where it is compared with some positives
_POSITIVES = 8

_NEAREST = tl.constexpr(-0x8000000000000000)  # before every key, and behind
_FARTHEST = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _distance(score, own, other, COSINE: tl.constexpr):
    """Return distances of products, ``own`` and ``other`` being squared lengths.

    Squares of no more than rounding leaves of two equal rows are 0. An infinite row is at no distance from
    any (NaN), but infinitely far from finite ones.
    """
    if COSINE:
        return 1.0 - score
    both = other + own
    squares = both - 2.0 * score
    nothing = both * (8.0 * 1.1920928955078125e-07)
    d = tl.where(squares <= nothing, 0.0, tl.sqrt_rn(squares))
    return tl.where(other - own == float("inf"), float("inf"), d) + (own - own)


@triton.jit
def _weight(slope, d, COSINE: tl.constexpr):
    """Return the derivative by half the square of the distance; at distance 0 there is none."""
    weight = slope
    if not COSINE:
        weight = tl.where(d == 0.0, 0.0, slope / d)
    return weight


@triton.jit
def _behind(number):
    """Return numbers from 0 to 2^31 - 1 in the opposite order, or the number of such a one."""
    return 0x7FFFFFFF - number


@triton.jit
def _key(d, tie):
    """Return integers in the order of the distances and, of equal ones, of numbers from 0 to 2^31 - 1."""
    bits = d.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | tie.to(tl.int64)


@triton.jit
def _of_key(key):
    """Return the distance and the number."""
    order = (key >> 32).to(tl.int32)
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _cost(positive, negative, margin):
    """Return what a triplet costs; not a number where a distance is not."""
    loss = positive - negative + margin
    return tl.where(loss <= 0.0, 0.0, loss)


@triton.jit
def _distances(S, D, RowNorms, ColumnNorms, columns, s_stride, d_stride,
               COSINE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    here = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    score = tl.load(S + here * s_stride + column, mask=inside, other=0.0)
    own = tl.load(RowNorms + here)
    other = tl.load(ColumnNorms + column, mask=inside, other=0.0)
    tl.store(D + here * d_stride + column, _distance(score, own, other, COSINE), mask=inside)


@triton.jit
def _all_triplets(
    D, W, First, Last, RowWeight, Margin, Loss, Active, Weights, row, columns, d_stride, w_stride, factor,
    SELF: tl.constexpr, COSINE: tl.constexpr, ROW_WEIGHT: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The slope of a distance is the number of triplets that cost something and that it is in.

    For a positive these are the negatives nearer than it and the margin; for a negative, the positives that
    reach beyond it with the margin.
    """
    here = tl.program_id(0)
    first = tl.load(First + here)
    last = tl.load(Last + here)
    margin = tl.load(Margin)
    own = -1
    if SELF:
        own = row + here
    weight = tl.full([], 1.0, tl.float32) * factor
    if ROW_WEIGHT:
        weight *= tl.load(RowWeight + here)
    distances = D + here.to(tl.int64) * d_stride
    weights = W + here.to(tl.int64) * w_stride
    loss = 0.0
    total = 0.0
    active = tl.zeros([], tl.int64)

    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        positive = (p < last) & (p != own)
        d_p = tl.load(distances + p, mask=positive, other=0.0)
        reach = tl.where(positive, d_p + margin, -float("inf"))
        nearer = tl.zeros([BLOCK_P, BLOCK], tl.int32)
        for begin in range(0, columns, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            d_n = tl.load(distances + column, mask=column < columns, other=float("inf"))
            d_n = tl.where((column < first) | (column >= last), d_n, float("inf"))
            nearer += (d_n[None, :] < reach[:, None]).to(tl.int32)
        count = tl.sum(nearer, 1)
        slope = count.to(tl.float32)
        loss += tl.sum(tl.where((count == 0) & (d_p == float("inf")), 0.0, slope * d_p), 0)
        active += tl.sum(count.to(tl.int64), 0)
        if SLOPES:
            w = tl.where(positive, _weight(slope * weight, d_p, COSINE), 0.0)
            total += tl.sum(w, 0)
            tl.store(weights + p, w, mask=positive)

    for begin in range(0, columns, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < columns
        other = inside & ((column < first) | (column >= last) | (column == own))
        d = tl.load(distances + column, mask=inside, other=0.0)
        d = tl.where(other, d, 0.0)
        d_n = tl.where(other & (column != own), d, float("inf"))
        count = tl.zeros([BLOCK], tl.int32)
        for start in range(first, last, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            positive = (p < last) & (p != own)
            d_p = tl.load(distances + p, mask=positive, other=0.0)
            reach = tl.where(positive, d_p + margin, -float("inf"))
            count += tl.sum((d_n[None, :] < reach[:, None]).to(tl.int32), 0)
        slope = -count.to(tl.float32)
        loss += tl.sum(tl.where((count == 0) & (d == float("inf")), 0.0, slope * d), 0)
        if SLOPES:
            w = tl.where(other, _weight(slope * weight, d, COSINE), 0.0)
            total += tl.sum(w, 0)
            tl.store(weights + column, w, mask=other)
    tl.store(Loss + here, loss + active.to(tl.float32) * margin)
    tl.store(Active + here, active)
    if SLOPES:
        tl.store(Weights + here, total)


@triton.jit
def _hardest_triplet(
    S, RowNorms, ColumnNorms, First, Last, Number, Place, RowWeight, Margin, Loss, Active, Columns, Weights,
    row, columns, s_stride, factor,
    SELF: tl.constexpr, COSINE: tl.constexpr, ROW_WEIGHT: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The farthest positive and the nearest negative, and the two weights that are not 0."""
    here = tl.program_id(0)
    first = tl.load(First + here)
    last = tl.load(Last + here)
    margin = tl.load(Margin)
    norm = tl.load(RowNorms + here)
    own = -1
    positives = last - first
    if SELF:
        own = row + here
        positives -= 1
    mined = (positives > 0) & (last - first < columns)
    farthest = tl.full([BLOCK], _NEAREST, tl.int64)
    nearest = tl.full([BLOCK], _FARTHEST, tl.int64)
    strange = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, columns, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < columns
        score = tl.load(S + here.to(tl.int64) * s_stride + column, mask=inside, other=0.0)
        d = _distance(score, norm, tl.load(ColumnNorms + column, mask=inside, other=0.0), COSINE)
        strange |= (inside & (d != d)).to(tl.int32)
        usable = inside & (d == d)
        of_class = (column >= first) & (column < last)
        # within a class the columns are in the order of their numbers
        far = _key(d, _behind(column))
        farthest = tl.maximum(farthest, tl.where(usable & of_class & (column != own), far, _NEAREST))
        near = _key(d, tl.load(Number + column, mask=inside, other=0))
        nearest = tl.minimum(nearest, tl.where(usable & ~of_class, near, _FARTHEST))
    of_positive = tl.max(farthest, 0)
    of_negative = tl.min(nearest, 0)
    found = (of_positive != _NEAREST) & (of_negative != _FARTHEST)
    d_p, p = _of_key(of_positive)
    d_n, number = _of_key(of_negative)
    cost = tl.where(found, _cost(d_p, d_n, margin), float("nan"))
    odd = tl.max(strange, 0) != 0
    tl.store(Loss + here, tl.where(mined, tl.where(odd, float("nan"), cost), 0.0))
    tl.store(Active + here, (mined & (cost > 0.0) & (odd == 0)).to(tl.int64))
    if SLOPES:
        costs = mined & found & ~(cost <= 0.0)
        weight = tl.full([], 1.0, tl.float32) * factor
        if ROW_WEIGHT:
            weight *= tl.load(RowWeight + here)
        n = tl.load(Place + number, mask=found, other=0)
        tl.store(Columns + here * 2, tl.where(found, _behind(p), 0).to(tl.int64))
        tl.store(Columns + here * 2 + 1, n.to(tl.int64))
        tl.store(Weights + here * 2, tl.where(costs, _weight(weight, d_p, COSINE), 0.0))
        tl.store(Weights + here * 2 + 1, tl.where(costs, _weight(-weight, d_n, COSINE), 0.0))


@triton.jit
def _semihard_triplets(
    D, W, First, Last, Number, Place, RowWeight, Margin, Loss, Active, Weights, row, columns, d_stride,
    w_stride, factor,
    SELF: tl.constexpr, COSINE: tl.constexpr, ROW_WEIGHT: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each positive the nearest negative that is farther, or the farthest one. Weights begin as 0."""
    here = tl.program_id(0)
    first = tl.load(First + here)
    last = tl.load(Last + here)
    margin = tl.load(Margin)
    own = -1
    if SELF:
        own = row + here
    weight = tl.full([], 1.0, tl.float32) * factor
    if ROW_WEIGHT:
        weight *= tl.load(RowWeight + here)
    distances = D + here.to(tl.int64) * d_stride
    weights = W + here.to(tl.int64) * w_stride
    any_negative = last - first < columns

    farthest = tl.full([BLOCK], _NEAREST, tl.int64)
    strange = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, columns, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < columns
        negative = inside & ((column < first) | (column >= last))
        d_n = tl.load(distances + column, mask=inside, other=0.0)
        number = tl.load(Number + column, mask=inside, other=0)
        strange |= (negative & (d_n != d_n)).to(tl.int32)
        far = tl.where(negative & (d_n == d_n), _key(d_n, _behind(number)), _NEAREST)
        farthest = tl.maximum(farthest, far)
    of_farthest = tl.max(farthest, 0)
    d_far, behind = _of_key(of_farthest)
    number_far = _behind(behind)
    odd = (tl.max(strange, 0) != 0) | (of_farthest == _NEAREST)
    d_far = tl.where(odd, float("nan"), d_far)  # the farthest is then one that is at no distance

    loss = 0.0
    total = 0.0
    active = tl.zeros([], tl.int64)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        positive = (p < last) & (p != own) & any_negative
        d_p = tl.load(distances + p, mask=positive, other=0.0)
        limit = _key(d_p, tl.full([BLOCK_P], 0x7FFFFFFF, tl.int32))
        nearest = tl.full([BLOCK_P, BLOCK], _FARTHEST, tl.int64)
        for begin in range(0, columns, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            inside = column < columns
            negative = inside & ((column < first) | (column >= last))
            d_n = tl.load(distances + column, mask=inside, other=0.0)
            number = tl.load(Number + column, mask=inside, other=0)
            key = tl.where(negative & (d_n == d_n), _key(d_n, number), _FARTHEST)
            farther = tl.where(key[None, :] > limit[:, None], key[None, :], _FARTHEST)
            nearest = tl.minimum(nearest, farther)
        of_nearest = tl.min(nearest, 1)
        d_near, number_near = _of_key(of_nearest)
        none = of_nearest == _FARTHEST
        d_n = tl.where(none, d_far, d_near)
        cost = tl.where(positive, _cost(d_p, d_n, margin), 0.0)
        loss += tl.sum(cost, 0)
        active += tl.sum((cost > 0.0).to(tl.int64), 0)
        if SLOPES:
            costs = positive & (d_n == d_n) & ~(cost <= 0.0)
            n = tl.load(Place + tl.where(none, number_far, number_near), mask=costs, other=0)
            w_p = tl.where(costs, _weight(weight, d_p, COSINE), 0.0)
            w_n = tl.where(costs, _weight(-weight, d_n, COSINE), 0.0)
            total += tl.sum(w_p, 0) + tl.sum(w_n, 0)
            tl.store(weights + p, w_p, mask=costs)
            # several positives may have one negative; they add the same, so that their order does not matter
            tl.atomic_add(weights + n, w_n, mask=costs, sem="relaxed")
    tl.store(Loss + here, loss)
    tl.store(Active + here, active)
    if SLOPES:
        tl.store(Weights + here, total)


@triton.jit
def _contrastive_pairs(
    S, W, RowNorms, ColumnNorms, First, Last, RowWeight, ColumnWeight, Margin, NegativeMargin, Loss, Within,
    Between, Weights, row, columns, s_stride, w_stride, factor,
    COSINE: tl.constexpr, ROW_WEIGHT: tl.constexpr, SLOPES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Half the losses of a row's pairs, and the weights that both rows of a pair give it."""
    here = tl.program_id(0)
    first = tl.load(First + here)
    last = tl.load(Last + here)
    margin = tl.load(Margin)
    negative_margin = tl.load(NegativeMargin)
    norm = tl.load(RowNorms + here)
    own = row + here
    weight = tl.full([], 1.0, tl.float32) * factor
    if ROW_WEIGHT:
        weight *= tl.load(RowWeight + here)
    loss = 0.0
    within = 0.0
    between = 0.0
    total = 0.0
    for begin in range(0, columns, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < columns
        counts = inside & (column != own)
        score = tl.load(S + here.to(tl.int64) * s_stride + column, mask=inside, other=0.0)
        d = _distance(score, norm, tl.load(ColumnNorms + column, mask=inside, other=0.0), COSINE)
        of_class = (column >= first) & (column < last)
        gap = tl.where(of_class, d - margin, negative_margin - d)
        gap = tl.where(counts & ~(gap <= 0.0), gap, 0.0)  # stays where it is not a number
        loss += tl.sum(gap * gap, 0)
        within += tl.sum(tl.where(of_class, gap, 0.0), 0)
        between += tl.sum(tl.where(of_class, 0.0, gap), 0)
        if SLOPES:
            of_both = weight + factor
            if ROW_WEIGHT:
                of_both = weight + factor * tl.load(ColumnWeight + column, mask=inside, other=0.0)
            slope = tl.where(of_class, gap, -gap) * of_both
            w = tl.where(counts, _weight(slope, d, COSINE), 0.0)
            total += tl.sum(w, 0)
            tl.store(W + here.to(tl.int64) * w_stride + column, w, mask=inside)
    tl.store(Loss + here, 0.5 * loss)
    tl.store(Within + here, within)
    tl.store(Between + here, between)
    if SLOPES:
        tl.store(Weights + here, total)


def _block(panel: Panel, most: int) -> int:
    return block_of(panel.scores.shape[1], most)


def distances(panel: Panel, rows: Rows, out: torch.Tensor) -> None:
    """Write the distances (R, C), which may go over the scores."""
    s, block = panel.scores, _block(panel, _COLUMNS)
    if s.numel() == 0:
        return
    _distances[(s.shape[0], triton.cdiv(s.shape[1], block))](
        s, out, rows.norms, rows.column_norms, s.shape[1], s.stride(0), out.stride(0), COSINE=rows.cosine,
        BLOCK=block,
    )  # fmt: skip


def all_triplets(
    panel: Panel,
    rows: Rows,
    distances: torch.Tensor,
    margin: torch.Tensor,
    loss: torch.Tensor,
    active: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Write losses, the numbers of triplets that cost something (int64), weights and their sums, of rows.

    The slopes are those of the panel, which may not lie over the distances.
    """
    d, slopes = distances, panel.slopes
    if d.shape[0] == 0:
        return
    # left to itself the assembler spills to fit in more programs
    _all_triplets[(d.shape[0],)](
        d, given(slopes, d), rows.first, rows.last, given(panel.row_weight, d), margin, loss, active, weights,
        panel.first, d.shape[1], d.stride(0), panel.strides()[1], panel.factor, SELF=rows.itself,
        COSINE=rows.cosine, ROW_WEIGHT=panel.row_weight is not None, SLOPES=slopes is not None,
        BLOCK_P=_POSITIVES, BLOCK=_block(panel, _COMPARED), maxnreg=128,
    )  # fmt: skip


def semihard_triplets(
    panel: Panel,
    rows: Rows,
    distances: torch.Tensor,
    margin: torch.Tensor,
    loss: torch.Tensor,
    active: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Write the same of one triplet for each positive. The panel's slopes must be 0."""
    d, slopes = distances, panel.slopes
    if d.shape[0] == 0:
        return
    _semihard_triplets[(d.shape[0],)](
        d, given(slopes, d), rows.first, rows.last, rows.number, rows.place, given(panel.row_weight, d),
        margin, loss, active, weights, panel.first, d.shape[1], d.stride(0), panel.strides()[1], panel.factor,
        SELF=rows.itself, COSINE=rows.cosine, ROW_WEIGHT=panel.row_weight is not None,
        SLOPES=slopes is not None, BLOCK_P=_POSITIVES, BLOCK=_block(panel, _COMPARED),
    )  # fmt: skip


def hardest_triplet(
    panel: Panel,
    rows: Rows,
    margin: torch.Tensor,
    loss: torch.Tensor,
    active: torch.Tensor,
    columns: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> None:
    """Write losses and whether they are above 0 (int64); of two columns (R, 2) int64 each, the weights.

    The panel's scores stay as they are: its other weights are 0.
    """
    s = panel.scores
    if s.shape[0] == 0:
        return
    _hardest_triplet[(s.shape[0],)](
        s, rows.norms, rows.column_norms, rows.first, rows.last, rows.number, rows.place,
        given(panel.row_weight, s), margin, loss, active, given(columns, s), given(weights, s), panel.first,
        s.shape[1], s.stride(0), panel.factor, SELF=rows.itself, COSINE=rows.cosine,
        ROW_WEIGHT=panel.row_weight is not None, SLOPES=weights is not None, BLOCK=_block(panel, _COLUMNS),
    )  # fmt: skip


def contrastive_pairs(
    panel: Panel,
    rows: Rows,
    margin: torch.Tensor,
    negative_margin: torch.Tensor,
    column_weight: torch.Tensor | None,
    loss: torch.Tensor,
    within: torch.Tensor,
    between: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Write half the losses of each row's pairs, how far those of its class and the others exceed margins.

    The weights count both halves, of the row and of the column, whose factors are ``column_weight`` where the
    rows have factors.
    """
    s = panel.scores
    if s.shape[0] == 0:
        return
    _contrastive_pairs[(s.shape[0],)](
        s, given(panel.slopes, s), rows.norms, rows.column_norms, rows.first, rows.last,
        given(panel.row_weight, s), given(column_weight, s), margin, negative_margin, loss, within, between,
        weights, panel.first, s.shape[1], *panel.strides(), panel.factor, COSINE=rows.cosine,
        ROW_WEIGHT=panel.row_weight is not None, SLOPES=panel.slopes is not None,
        BLOCK=_block(panel, _COLUMNS),
    )  # fmt: skip
