"""InfoNCE in Triton, flash style: a tile of logits lives in registers, statistics and gradients leave.

The forward pass keeps an online maximum and sum for each row. The backward pass recomputes the tiles, once
for the queries and once for the keys. All arithmetic but the tile products' operands is float32. Operands are
to be of half precision: tensor cores have no float32, and without them a tile does not fit into registers.
"""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl
from thawkit.kernels.arithmetic import log1p


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
def _forward(
    Q, K, Scale, Loss, Maximum, Sum, Missing, rows, keys, features, q_stride, k_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
    # The positive stays out of the sum, so that nothing cancels where it dominates.
    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    positive = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _load_rows(K, column, keys, k_stride, features, BLOCK_D)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        own = row[:, None] == column[None, :]
        positive += tl.sum(tl.where(own, logits, 0.0), 1)
        logits = tl.where((column[None, :] < keys) & ~own, logits, -float("inf"))
        larger = tl.maximum(maximum, tl.max(logits, 1))
        finite = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(maximum - finite) + tl.sum(tl.exp(logits - finite[:, None]), 1)
        maximum = larger
    larger = tl.maximum(maximum, positive)
    others = total * tl.exp(maximum - larger)
    both = others + tl.exp(positive - larger)
    tl.store(Maximum + row, larger, mask=row < rows)
    tl.store(Sum + row, both, mask=row < rows)
    tl.store(Missing + row, others / both, mask=row < rows)
    loss = tl.where(positive >= maximum, log1p(others), tl.log(both) + (larger - positive))
    tl.store(Loss + row, loss, mask=row < rows)


@triton.jit
def _slopes(q, k, scale, maximum, share, of_own, row, column, keys):
    """Return the tile's products before the scale, and weight * d loss / d logits."""
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    softmax = tl.where(column[None, :] < keys, tl.exp(products * scale - maximum[:, None]), 0.0)
    return products, tl.where(row[:, None] == column[None, :], of_own[:, None], softmax * share[:, None])


@triton.jit
def _load_statistics(Maximum, Sum, Missing, Weight, row, rows):
    """Return the maximum, and what exponentials below it and the positive's 1 are multiplied by.

    The maximum and the sum come apart: a row's slopes add up to 0, and the rounding of their log-sum-exp
    would be in all of them but the positive's.
    """
    maximum = tl.load(Maximum + row, mask=row < rows, other=float("inf"))
    weight = tl.load(Weight + row, mask=row < rows, other=0.0)
    missing = tl.load(Missing + row, mask=row < rows, other=0.0)
    return maximum, weight / tl.load(Sum + row, mask=row < rows, other=1.0), -missing * weight


@triton.jit
def _backward_queries(
    Q, K, Scale, Maximum, Sum, Missing, Weight, DQ, DScale, rows, keys, features, q_stride, k_stride,
    NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
    maximum, share, of_own = _load_statistics(Maximum, Sum, Missing, Weight, row, rows)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dscale = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _load_rows(K, column, keys, k_stride, features, BLOCK_D)
        products, slopes = _slopes(q, k, scale, maximum, share, of_own, row, column, keys)
        if NEED_DSCALE:
            dscale += tl.sum(slopes * products, 1)
        if NEED_DQ:
            dq += tl.dot(slopes.to(k.dtype), k, input_precision="ieee")
    if NEED_DQ:
        _store_rows(DQ, dq, row, rows, features, BLOCK_D)
    if NEED_DSCALE:
        tl.store(DScale + row, dscale, mask=row < rows)


@triton.jit
def _backward_keys(
    Q, K, Scale, Maximum, Sum, Missing, Weight, DK, rows, keys, features, q_stride, k_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scale = tl.load(Scale)
    k = _load_rows(K, column, keys, k_stride, features, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        q = _load_rows(Q, row, rows, q_stride, features, BLOCK_D)
        maximum, share, of_own = _load_statistics(Maximum, Sum, Missing, Weight, row, rows)
        _, slopes = _slopes(q, k, scale, maximum, share, of_own, row, column, keys)
        dk += tl.dot(tl.trans(slopes.to(q.dtype)), q, input_precision="ieee")
    _store_rows(DK, dk, column, keys, features, BLOCK_D)


MOST_FEATURES = 128  # a tile holds whole rows
# A thread may have so many: left to itself, the compiler spills registers to make room for a third block.
_REGISTERS_OF_64_FEATURES = 192


def _options(q: torch.Tensor) -> dict[str, int]:
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": max(16, triton.next_power_of_2(q.shape[1]))}


def _sizes(q: torch.Tensor, k: torch.Tensor) -> tuple[int, int, int, int, int]:
    return q.shape[0], k.shape[0], q.shape[1], q.stride(0), k.stride(0)


def info_nce_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    loss: torch.Tensor,
    maximum: torch.Tensor,
    total: torch.Tensor,
    missing: torch.Tensor,
) -> None:
    """Write (N,) numbers of the logits ``scale * q @ k.T``, of q (N, D) and k (M, D).

    The losses; the maxima; the sums of ``exp(logits - maximum)``; 1 less the positives' softmax.

    Rows lie in memory without gaps, at any distance; so too for the functions below. Outputs are contiguous.
    """
    if q.shape[0] == 0:
        return
    options = _options(q)
    grid = (triton.cdiv(q.shape[0], options["BLOCK_M"]),)
    _forward[grid](q, k, scale, loss, maximum, total, missing, *_sizes(q, k), **options)


def info_nce_backward_queries(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    maximum: torch.Tensor,
    total: torch.Tensor,
    missing: torch.Tensor,
    weight: torch.Tensor,
    dq: torch.Tensor,
    dscale: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dq over the scale (N, D), and / dscale a row (N,).

    An empty output is not computed.
    """
    options = _options(q)
    grid = (triton.cdiv(q.shape[0], options["BLOCK_M"]),)
    _backward_queries[grid](
        q, k, scale, maximum, total, missing, weight, dq, dscale, *_sizes(q, k),
        NEED_DQ=dq.numel() > 0, NEED_DSCALE=dscale.numel() > 0,
        maxnreg=_REGISTERS_OF_64_FEATURES if options["BLOCK_D"] == 64 else None, **options,
    )  # fmt: skip


def info_nce_backward_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    maximum: torch.Tensor,
    total: torch.Tensor,
    missing: torch.Tensor,
    weight: torch.Tensor,
    dk: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dk over the scale (M, D)."""
    options = _options(q)
    grid = (triton.cdiv(k.shape[0], options["BLOCK_N"]),)
    _backward_keys[grid](q, k, scale, maximum, total, missing, weight, dk, *_sizes(q, k), **options)
