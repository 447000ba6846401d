"""The fused losses in Triton, flash style: a tile of logits lives in registers and never in memory.

One template, which a loss enters with what it does to a tile: InfoNCE, NT-Xent, CLIP and SigLIP. The forward
pass makes statistics of each row, a backward pass makes the tiles anew and adds up a gradient. Slopes of
InfoNCE and SigLIP are summed once by rows and once by columns. NT-Xent and CLIP take softmaxes of rows and of
columns, both from one tile: NT-Xent, whose logits are symmetric, has all in one pass, CLIP swaps its sides.
All arithmetic but the tile products' operands is float32. Operands are to be of half precision: tensor cores
have no float32, and without them a tile does not fit into registers.
"""

# Triton reads annotations at run time, so they are not postponed here.
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from thawkit.kernels.arithmetic import add_exponentials, logistic, signed_logits, softmax_loss, softplus


@triton.jit
def _load_rows(matrix, rows, count, stride, features, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * stride + columns[None, :]
    return tl.load(matrix + offsets, mask=(rows[:, None] < count) & (columns[None, :] < features), other=0.0)


@triton.jit
def _store_rows(matrix, values, rows, count, features, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * features + columns[None, :]
    tl.store(matrix + offsets, values, mask=(rows[:, None] < count) & (columns[None, :] < features))


@triton.jit
def _products(q, k):
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def _own(row, column, keys, offset, LOSS: tl.constexpr):
    """Return which of a tile are pairs: of NT-Xent the column ``offset`` on, round the end."""
    own = row + offset
    if LOSS == "nt_xent":
        own = tl.where(own < keys, own, own - keys)
    return own[:, None] == column[None, :]


@triton.jit
def _forward(
    Q, K, Scale, Bias, Loss, Maximum, Sum, Missing, rows, keys, features, q_stride, k_stride, offset,
    LOSS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    if LOSS == "siglip":
        bias = tl.load(Bias)
    q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    positive = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        products = _products(q, _load_rows(K, column, keys, k_stride, features, BLOCK_D))
        counts = column[None, :] < keys
        own = _own(row, column, keys, offset, LOSS)
        if LOSS == "siglip":
            _, z = signed_logits(products, own, scale, bias)
            total += tl.sum(tl.where(counts, softplus(z), 0.0), 1)
        else:
            logits = products * scale
            positive += tl.sum(tl.where(own, logits, 0.0), 1)
            if LOSS == "nt_xent":
                counts = counts & (row[:, None] != column[None, :])
            logits = tl.where(counts & ~own, logits, -float("inf"))
            maximum, total = add_exponentials(maximum, total, logits, 1)
    if LOSS == "siglip":
        tl.store(Loss + row, total, mask=row < rows)
    else:
        larger, others, both, loss = softmax_loss(maximum, total, positive)
        tl.store(Maximum + row, larger, mask=row < rows)
        tl.store(Sum + row, both, mask=row < rows)
        tl.store(Missing + row, others / both, mask=row < rows)
        tl.store(Loss + row, loss, mask=row < rows)


@triton.jit
def _load_statistics(Maximum, Sum, Missing, Weight, row, rows, LOSS: tl.constexpr):
    """Return the maximum, and what exponentials below it and the positive's 1 are multiplied by.

    The maximum and the sum come apart: a row's slopes add up to 0, and the rounding of their log-sum-exp
    would be in all of them but the positive's. SigLIP has weights only.
    """
    weight = tl.load(Weight + row, mask=row < rows, other=0.0)
    maximum, share, of_own = weight, weight, weight
    if LOSS != "siglip":
        maximum = tl.load(Maximum + row, mask=row < rows, other=float("inf"))
        share = weight / tl.load(Sum + row, mask=row < rows, other=1.0)
        share = tl.where(weight != 0.0, share, 0.0)
        of_own = -tl.load(Missing + row, mask=weight != 0.0, other=0.0) * weight
    return maximum, share, of_own


@triton.jit
def _slopes(products, scale, Bias, maximum, share, of_own, row, column, keys, offset, LOSS: tl.constexpr):
    """Return weight * d loss / d logits of a tile, by the rows' statistics."""
    own = _own(row, column, keys, offset, LOSS)
    # a row of weight 0 has no slopes, whatever it holds, and so has one past the last
    there = (column[None, :] < keys) & (share != 0.0)[:, None]
    if LOSS == "siglip":
        sign, z = signed_logits(products, own, scale, tl.load(Bias))
        slopes = sign * logistic(z) * share[:, None]
    else:
        slopes = tl.exp(products * scale - maximum[:, None]) * share[:, None]
        slopes = tl.where(own, of_own[:, None], slopes)
    return tl.where(there, slopes, 0.0)


@triton.jit
def _mutual_slopes(
    products, scale, maximum, share, of_own, column_maximum, column_share, column_of_own, row, column,
    keys, offset, LOSS: tl.constexpr,
):  # fmt: skip
    """Return the same, the slopes of the columns' softmaxes added."""
    own = _own(row, column, keys, offset, LOSS)
    logits = products * scale
    slopes = tl.exp(logits - maximum[:, None]) * share[:, None]
    of_columns = tl.exp(logits - column_maximum[None, :]) * column_share[None, :]
    if LOSS == "nt_xent":
        # as on panels: a row of weight 0 has no slopes, whatever it holds; each of CLIP's is in all columns
        slopes = tl.where((share != 0.0)[:, None], slopes, 0.0)
        of_columns = tl.where((column_share != 0.0)[None, :], of_columns, 0.0)
    slopes += of_columns
    slopes = tl.where(own, of_own[:, None] + column_of_own[None, :], slopes)
    there = column[None, :] < keys
    if LOSS == "nt_xent":
        there = there & (row[:, None] != column[None, :])
    return tl.where(there, slopes, 0.0)


@triton.jit
def _backward_rows(
    Q, K, Scale, Bias, Maximum, Sum, Missing, Weight, ColumnMaximum, ColumnSum, ColumnMissing, ColumnWeight,
    DQ, DScale, DBias, rows, keys, features, q_stride, k_stride, offset,
    LOSS: tl.constexpr, NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr, NEED_DBIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
    maximum, share, of_own = _load_statistics(Maximum, Sum, Missing, Weight, row, rows, LOSS)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dscale = tl.zeros([BLOCK_M], tl.float32)
    dbias = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _load_rows(K, column, keys, k_stride, features, BLOCK_D)
        products = _products(q, k)
        if LOSS == "clip" or LOSS == "nt_xent":
            column_maximum, column_share, column_of_own = _load_statistics(
                ColumnMaximum, ColumnSum, ColumnMissing, ColumnWeight, column, keys, LOSS
            )
            slopes = _mutual_slopes(
                products, scale, maximum, share, of_own, column_maximum, column_share, column_of_own,
                row, column, keys, offset, LOSS,
            )  # fmt: skip
        else:
            slopes = _slopes(products, scale, Bias, maximum, share, of_own, row, column, keys, offset, LOSS)
        if NEED_DSCALE:
            if LOSS == "nt_xent":
                products = tl.where(slopes == 0.0, 0.0, products)
            dscale += tl.sum(slopes * products, 1)
        if NEED_DBIAS:
            dbias += tl.sum(slopes, 1)
        if NEED_DQ:
            dq += tl.dot(slopes.to(k.dtype), k, input_precision="ieee")
    if NEED_DQ:
        _store_rows(DQ, dq, row, rows, features, BLOCK_D)
    if NEED_DSCALE:
        if LOSS == "nt_xent":
            dscale *= 0.5  # each slope was met twice, in its row and in its column
        tl.store(DScale + row, dscale, mask=row < rows)
    if NEED_DBIAS:
        tl.store(DBias + row, dbias, mask=row < rows)


@triton.jit
def _backward_columns(
    Q, K, Scale, Bias, Maximum, Sum, Missing, Weight, DK, rows, keys, features, q_stride, k_stride, offset,
    LOSS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scale = tl.load(Scale)
    k = _load_rows(K, column, keys, k_stride, features, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
        maximum, share, of_own = _load_statistics(Maximum, Sum, Missing, Weight, row, rows, LOSS)
        slopes = _slopes(
            _products(q, k), scale, Bias, maximum, share, of_own, row, column, keys, offset, LOSS
        )
        dk += tl.dot(tl.trans(slopes.to(q.dtype)), q, input_precision="ieee")
    _store_rows(DK, dk, column, keys, features, BLOCK_D)


MOST_FEATURES = 128  # a tile holds whole rows
# A thread may have so many: left to itself, the compiler spills registers to make room for a third block.
_REGISTERS_OF_64_FEATURES = 192


class Sums(NamedTuple):
    """Statistics of the softmaxes of rows, and what their losses count for: (N,) float32 each."""

    maximum: torch.Tensor
    """Largest logits."""
    total: torch.Tensor
    """Sums of ``exp(logits - maximum)``."""
    missing: torch.Tensor
    """1 less the positives' softmax."""
    weight: torch.Tensor
    """Of the losses; not read by the forward pass."""


def _options(q: torch.Tensor, columns: int = 64) -> dict[str, int]:
    return {"BLOCK_M": 64, "BLOCK_N": columns, "BLOCK_D": max(16, triton.next_power_of_2(q.shape[1]))}


def _sizes(q: torch.Tensor, k: torch.Tensor) -> tuple[int, int, int, int, int]:
    return q.shape[0], k.shape[0], q.shape[1], q.stride(0), k.stride(0)


def _backward_by_rows(
    loss: str,
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    of_rows: Sums,
    of_columns: Sums,
    offset: int,
    dq: torch.Tensor,
    dscale: torch.Tensor,
    dbias: torch.Tensor,
) -> None:
    if q.shape[0] == 0:
        return
    plain = loss == "info_nce"
    options = _options(q, columns=64 if plain else 32)  # what else a loss holds takes registers, too
    _backward_rows[(triton.cdiv(q.shape[0], options["BLOCK_M"]),)](
        q, k, scale, bias, *of_rows, *of_columns, dq, dscale, dbias, *_sizes(q, k), offset, LOSS=loss,
        NEED_DQ=dq.numel() > 0, NEED_DSCALE=dscale.numel() > 0, NEED_DBIAS=dbias.numel() > 0,
        maxnreg=_REGISTERS_OF_64_FEATURES if options["BLOCK_D"] == 64 and plain else None, **options,
    )  # fmt: skip


def _backward_by_columns(
    loss: str,
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    of_rows: Sums,
    offset: int,
    dk: torch.Tensor,
) -> None:
    if k.shape[0] == 0:
        return
    options = _options(q)
    _backward_columns[(triton.cdiv(k.shape[0], options["BLOCK_N"]),)](
        q, k, scale, bias, *of_rows, dk, *_sizes(q, k), offset, LOSS=loss, **options
    )


def softmax_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    loss: torch.Tensor,
    sums: Sums,
    partner: int | None = None,
) -> None:
    """Write the losses (N,) of the logits ``scale * q @ k.T``, of q (N, D) and k (M, D), and their sums.

    Row i belongs to column i. With ``partner``, for NT-Xent, it belongs to column ``i + partner`` round the
    end, and column i does not count.

    Rows lie in memory without gaps, at any distance; so too for the functions below. Outputs are contiguous.
    """
    if q.shape[0] == 0:
        return
    options = _options(q)
    _forward[(triton.cdiv(q.shape[0], options["BLOCK_M"]),)](
        q, k, scale, scale, loss, *sums[:3], *_sizes(q, k), 0 if partner is None else partner,
        LOSS="info_nce" if partner is None else "nt_xent", **options,
    )  # fmt: skip


def info_nce_backward_queries(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    sums: Sums,
    dq: torch.Tensor,
    dscale: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dq over the scale (N, D), and / dscale a row (N,).

    An empty output is not computed; so too for the functions below.
    """
    nothing = dscale.new_empty(0)
    _backward_by_rows("info_nce", q, k, scale, scale, sums, sums, 0, dq, dscale, nothing)


def info_nce_backward_keys(
    q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, sums: Sums, dk: torch.Tensor
) -> None:
    """Write d(sum weight * loss) / dk over the scale (M, D)."""
    _backward_by_columns("info_nce", q, k, scale, scale, sums, 0, dk)


def clip_backward(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    of_rows: Sums,
    of_columns: Sums,
    dx: torch.Tensor,
    dscale: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dx over the scale (N, D), and / dscale a row (N,), of both directions.

    The sums are those of ``softmax_forward`` of (x, y) and of (y, x); with all swapped it writes dy.
    """
    nothing = dscale.new_empty(0)
    _backward_by_rows("clip", x, y, scale, scale, of_rows, of_columns, 0, dx, dscale, nothing)


def nt_xent_backward(
    z: torch.Tensor, scale: torch.Tensor, sums: Sums, dz: torch.Tensor, dscale: torch.Tensor
) -> None:
    """Write d(sum weight * loss) / dz over the scale (2N, D), and / dscale a row (2N,)."""
    half, nothing = z.shape[0] // 2, dscale.new_empty(0)
    _backward_by_rows("nt_xent", z, z, scale, scale, sums, sums, half, dz, dscale, nothing)


def _siglip_offset(k: torch.Tensor, offset: int | None) -> int:
    return k.shape[0] if offset is None else offset  # past all columns there is no pair


def siglip_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    offset: int | None,
    loss: torch.Tensor,
) -> None:
    """Write SigLIP's losses (N,). Row i belongs to column i + offset; None: to none."""
    if q.shape[0] == 0:
        return
    options = _options(q)
    _forward[(triton.cdiv(q.shape[0], options["BLOCK_M"]),)](
        q, k, scale, bias, loss, loss, loss, loss, *_sizes(q, k), _siglip_offset(k, offset), LOSS="siglip",
        **options,
    )  # fmt: skip


def siglip_backward_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    offset: int | None,
    weight: torch.Tensor,
    dq: torch.Tensor,
    dscale: torch.Tensor,
    dbias: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dq over the scale (N, D), and / dscale and / dbias a row (N,)."""
    sums, offset = Sums(weight, weight, weight, weight), _siglip_offset(k, offset)
    _backward_by_rows("siglip", q, k, scale, bias, sums, sums, offset, dq, dscale, dbias)


def siglip_backward_columns(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    offset: int | None,
    weight: torch.Tensor,
    dk: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dk over the scale (M, D)."""
    sums, offset = Sums(weight, weight, weight, weight), _siglip_offset(k, offset)
    _backward_by_columns("siglip", q, k, scale, bias, sums, offset, dk)
