"""The kernels of MMD in Triton: from tiles of inner products to what the pairs are worth, and to slopes.

A tile holds the products of some rows with some others, one panel a layer. A program takes a block of
entries: distances from products and squared norms, the kernel of each layer, their product times what the
pair counts, and the slopes, which leave in the dtype in which they are multiplied next. All arithmetic is
float32; each program adds its sum to a float64 number of its own, which the next launches find there.
"""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl
from thawkit.kernels.launch import block_of, given
from thawkit.kernels.mmd_pairs import DIGIT, Pairs

_MOST_ENTRIES, _LEAST_ENTRIES = 2048, 512  # of a program: fewer where several layers are in registers
_COLUMNS = 256


@triton.jit
def _kernel_of(s, norms, own, First, Second, rounding, KIND: tl.constexpr, COUNT: tl.constexpr):
    """Return kernel and slope at inner products s; the numbers are those of csrc/cpu/mmd_kernels.h.

    The slope is dk / ds of ``product``, else -dk / d(d^2). ``own`` are the pairs of a row with itself.
    """
    if KIND == "product":
        scale = tl.load(First)
        p = s * scale + tl.load(Second)
        k = p
        slope = tl.zeros_like(p) + scale * COUNT
        for _ in tl.static_range(1, COUNT):
            k *= p
            slope *= p
    else:
        d2 = _squares(s, norms, own)
        if KIND == "doubling":
            e = tl.exp2(d2 * tl.load(First))
            k = e
            slope = e
            for b in tl.static_range(1, COUNT):
                e = e * e
                k += e
                slope += e * (1 << b)
            slope *= tl.load(Second)
        elif KIND == "rbf":
            k = tl.zeros_like(d2)
            slope = tl.zeros_like(d2)
            for b in range(COUNT):
                e = tl.exp2(d2 * tl.load(First + b))
                k += e
                slope += e * tl.load(Second + b)
        elif KIND == "imq":
            k = tl.zeros_like(d2)
            slope = tl.zeros_like(d2)
            for b in range(COUNT):
                r = 1.0 / (1.0 + d2 * tl.load(First + b))
                k += r
                slope += r * r * tl.load(Second + b)
        else:
            d, inverse = _roots(d2, norms, rounding)
            if KIND == "energy":
                k = -d
                slope = 0.5 * inverse
            else:
                k = tl.zeros_like(d)
                slope = tl.zeros_like(d)
                for b in range(COUNT):
                    e = tl.exp2(d * tl.load(First + b))
                    k += e
                    slope += e * tl.load(Second + b)
                slope *= inverse
        slope = tl.where(own, 0.0, slope)
    return k, slope


@triton.jit
def _squares(s, norms, own):
    d2 = norms - 2.0 * s
    d2 = tl.where(d2 < 0.0, 0.0, d2)  # what is no number stays none
    return tl.where(own, norms - norms, d2)


@triton.jit
def _roots(d2, norms, rounding):
    """Return distances and their inverses, 0 where the square is no more than the rounding of 0."""
    same = d2 <= norms * rounding
    d = tl.sqrt(d2)
    return tl.where(same, 0.0, d), tl.where(same, 0.0, 1.0 / tl.where(same, 1.0, d))


@triton.jit
def _add_rate_sums(
    s, norms, own, factor, First, Sums, times, rounding, KIND: tl.constexpr, COUNT: tl.constexpr
):
    """Add what the derivatives by the rates are made of, RateSums in csrc/cpu/mmd_kernels.h."""
    d2 = _squares(s, norms, own)
    d = d2
    if KIND == "laplace":
        d, _ = _roots(d2, norms, rounding)
    for b in range(COUNT):
        rate = tl.load(First + b)
        if KIND == "imq":
            r = 1.0 / (1.0 + d2 * rate)
            t = d2 * r * r
        else:
            t = d * tl.exp2(d * rate)
        total = tl.sum(tl.sum(factor * t, 1), 0) * times
        tl.store(Sums + b, tl.load(Sums + b) + total.to(tl.float64))


@triton.jit
def _norms_of_pairs(Norms, of_row, of_column, in_rows, in_columns):
    of_rows = tl.load(Norms + of_row, mask=in_rows, other=0.0)
    return of_rows[:, None] + tl.load(Norms + of_column, mask=in_columns, other=0.0)[None, :]


@triton.jit
def _tile(
    S, W, Norms, First, Second, Weights, Same, Labels, Value, RateSums,
    top, left, rows, columns, first, times, s_layer, s_stride, w_layer, w_stride, count, rounding,
    KINDS: tl.constexpr, COUNTS: tl.constexpr, LEARNED: tl.constexpr, SLOPED: tl.constexpr,
    LAYERS: tl.constexpr, BANDWIDTHS: tl.constexpr, CROSSES: tl.constexpr, DIAGONAL: tl.constexpr,
    SAME: tl.constexpr, LABELS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    in_rows = row < rows
    in_columns = column < columns
    there = in_rows[:, None] & in_columns[None, :]
    of_row = top + row
    of_column = left + column
    own = there & False
    if CROSSES:
        own = of_row[:, None] == of_column[None, :]

    factor = tl.load(Weights + of_row, mask=in_rows, other=0.0)[:, None]
    factor = factor * tl.load(Weights + of_column, mask=in_columns, other=0.0)[None, :]
    if SAME:
        same = tl.load(Same + of_column, mask=in_columns, other=0.0)
        inside = (of_row[:, None] < first) == (of_column[None, :] < first)
        factor = tl.where(inside, factor * same[None, :], factor)
    if LABELS:
        label = tl.load(Labels + of_row, mask=in_rows, other=0)
        others = tl.load(Labels + of_column, mask=in_columns, other=0)
        factor = tl.where(label[:, None] == others[None, :], factor, 0.0)
    out = ~there
    if not DIAGONAL:
        out = out | own

    at = row[:, None].to(tl.int64) * s_stride + column[None, :]
    before = ()
    kernels = ()
    slopes = ()
    for l in tl.static_range(LAYERS):
        s = tl.load(S + l * s_layer + at, mask=there, other=0.0)
        norms = _norms_of_pairs(Norms + l * count, of_row, of_column, in_rows, in_columns)
        k, slope = _kernel_of(
            s, norms, own, First + l * BANDWIDTHS, Second + l * BANDWIDTHS, rounding,
            tl.constexpr(KINDS[l]), tl.constexpr(COUNTS[l]),  # Triton 3.6 takes them out of their tuples bare
        )  # fmt: skip
        before += (factor,)
        kernels += (k,)
        slopes += (slope,)
        factor = factor * k
    worth = tl.sum(tl.sum(tl.where(out, 0.0, factor), 1), 0) * times
    tl.store(Value + program, tl.load(Value + program) + worth.to(tl.float64))

    w_at = row[:, None].to(tl.int64) * w_stride + column[None, :]
    after = tl.full([BLOCK_R, BLOCK_C], 1.0, tl.float32)
    for l in tl.static_range(LAYERS - 1, -1, -1):
        factor = tl.where(out, 0.0, before[l] * after)
        if LEARNED[l]:
            s = tl.load(S + l * s_layer + at, mask=there, other=0.0)
            norms = _norms_of_pairs(Norms + l * count, of_row, of_column, in_rows, in_columns)
            sums = RateSums + (program * LAYERS + l) * BANDWIDTHS
            _add_rate_sums(
                s, norms, own, factor, First + l * BANDWIDTHS, sums, times, rounding,
                tl.constexpr(KINDS[l]), tl.constexpr(COUNTS[l]),
            )  # fmt: skip
        if SLOPED[l]:
            slope = tl.where(out, 0.0, factor * slopes[l])
            tl.store(W + l * w_layer + w_at, slope, mask=there)
        after = after * kernels[l]


@triton.jit
def _values(
    S, Norms, First, Second, top, left, rows, columns, s_stride, rounding,
    KIND: tl.constexpr, COUNT: tl.constexpr, CROSSES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_rows = row < rows
    in_columns = column < columns
    there = in_rows[:, None] & in_columns[None, :]
    own = there & False
    if CROSSES:
        own = top + row[:, None] == left + column[None, :]
    scores = S + row[:, None].to(tl.int64) * s_stride + column[None, :]
    s = tl.load(scores, mask=there, other=0.0)
    norms = _norms_of_pairs(Norms, top + row, left + column, in_rows, in_columns)
    k, _ = _kernel_of(s, norms, own, First, Second, rounding, KIND, COUNT)
    tl.store(scores, tl.where(own, 0.0, k), mask=there)


@triton.jit
def _digits(
    S, Norms, Found, Counts, top, left, rows, columns, s_stride, rounding,
    SHIFT: tl.constexpr, BITS: tl.constexpr, CROSSES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_rows = row < rows
    in_columns = column < columns
    counted = in_rows[:, None] & in_columns[None, :]
    at = row[:, None].to(tl.int64) * s_stride + column[None, :]
    s = tl.load(S + at, mask=counted, other=0.0)
    norms = _norms_of_pairs(Norms, top + row, left + column, in_rows, in_columns)
    if CROSSES:
        counted = counted & (top + row[:, None] < left + column[None, :])
    d2 = norms - 2.0 * s
    bits = tl.where(d2 > norms * rounding, d2, 0.0).to(tl.int32, bitcast=True)
    if SHIFT + BITS < 31:
        counted = counted & ((bits >> (SHIFT + BITS)) == tl.load(Found))
    digits = tl.reshape((bits >> SHIFT) & ((1 << BITS) - 1), [BLOCK_R * BLOCK_C])
    found = tl.histogram(digits, 1 << BITS, mask=tl.reshape(counted, [BLOCK_R * BLOCK_C]))
    tl.atomic_add(Counts + tl.arange(0, 1 << BITS), found.to(tl.int64), mask=found > 0)


def _blocks(columns: int, layers: int) -> tuple[int, int]:
    """Return rows and columns of a program's block."""
    block = block_of(columns, _COLUMNS)
    entries = max(_LEAST_ENTRIES, _MOST_ENTRIES // triton.next_power_of_2(layers))
    return entries // block, block


def programs(rows: int, columns: int, layers: int) -> int:
    """Return how many programs take a tile; a smaller one takes no more."""
    block_r, block_c = _blocks(columns, layers)
    return triton.cdiv(rows, block_r) * triton.cdiv(columns, block_c)


def tile(
    pairs: Pairs, scores: torch.Tensor, slopes: torch.Tensor | None, top: int, left: int, times: float
) -> None:
    """Add what the pairs of some rows with some others are worth, and write the slopes that are wanted.

    Args:
        pairs: of all rows.
        scores: (L, R, C) float32 inner products of rows ``top`` and on with rows ``left`` and on.
        slopes: (L, R, C) of any dtype, may be ``scores``; None where no layer is sloped. Of ``product`` they
            are the derivatives by the scores, else minus those by the squared distances.
        top: number of the first row.
        left: number of the first column.
        times: how often each pair counts in the sums: twice where it stands for both of its orders.
    """
    layers, rows, columns = scores.shape
    if rows == 0 or columns == 0:
        return
    w = scores if slopes is None else slopes
    assert scores.stride(2) == w.stride(2) == 1
    block_r, block_c = _blocks(columns, layers)
    _tile[(triton.cdiv(columns, block_c), triton.cdiv(rows, block_r))](
        scores, w, pairs.norms, pairs.first_numbers, pairs.second_numbers, pairs.weights,
        given(pairs.same, scores), given(pairs.labels, scores), pairs.value, given(pairs.rate_sums, scores),
        top, left, rows, columns, pairs.first, times, *scores.stride()[:2], *w.stride()[:2],
        pairs.norms.shape[1], pairs.rounding,
        KINDS=tuple(of.kind for of in pairs.layers), COUNTS=tuple(of.count for of in pairs.layers),
        LEARNED=tuple(of.learned for of in pairs.layers), SLOPED=tuple(of.sloped for of in pairs.layers),
        LAYERS=layers, BANDWIDTHS=pairs.first_numbers.shape[1], CROSSES=_crosses(scores, top, left),
        DIAGONAL=pairs.diagonal, SAME=pairs.same is not None, LABELS=pairs.labels is not None,
        BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def values(pairs: Pairs, scores: torch.Tensor, top: int, left: int) -> None:
    """Write the kernel of the one layer over its scores (R, C), 0 for a row with itself; see :func:`tile`."""
    rows, columns = scores.shape
    if rows == 0 or columns == 0:
        return
    assert scores.stride(1) == 1
    (layer,) = pairs.layers
    block_r, block_c = _blocks(columns, 1)
    _values[(triton.cdiv(columns, block_c), triton.cdiv(rows, block_r))](
        scores, pairs.norms, pairs.first_numbers, pairs.second_numbers, top, left, rows, columns,
        scores.stride(0), pairs.rounding, KIND=layer.kind, COUNT=layer.count,
        CROSSES=_crosses(scores, top, left), BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def count_digits(
    scores: torch.Tensor, norms: torch.Tensor, found: torch.Tensor, counts: torch.Tensor, shift: int,
    top: int, left: int, rounding: float,
) -> None:  # fmt: skip
    """Count the pairs i < j of a tile by one digit of ``DIGIT`` bits of their squared distances.

    Squares from 0 up have the order of their bits, taken as integers.

    Args:
        scores: (R, C) float32 inner products of rows ``top`` and on with rows ``left`` and on.
        norms: (N,) float32 squared norms of the rows.
        found: int32 number before the digit, of the pairs that count.
        counts: (2^DIGIT,) int64 to which is added.
        shift: how many bits come after the digit; where none comes before it, all pairs count.
        top: number of the first row.
        left: number of the first column.
        rounding: squares of no more than that many norms of both rows count as 0.
    """
    rows, columns = scores.shape
    if rows == 0 or columns == 0:
        return
    assert scores.stride(1) == 1
    block_r, block_c = _blocks(columns, 1)
    _digits[(triton.cdiv(columns, block_c), triton.cdiv(rows, block_r))](
        scores, norms, found, counts, top, left, rows, columns, scores.stride(0), rounding, SHIFT=shift,
        BITS=DIGIT, CROSSES=_crosses(scores, top, left), BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def _crosses(scores: torch.Tensor, top: int, left: int) -> bool:
    """Whether some row of the tile is also one of its columns."""
    rows, columns = scores.shape[-2:]
    return top < left + columns and left < top + rows
