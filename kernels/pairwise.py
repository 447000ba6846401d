"""InfoNCE in Triton, flash style: a tile of logits lives in registers, statistics and gradients leave.

The forward pass keeps an online maximum and sum for each row. The backward pass recomputes the tiles, once
for the queries and once for the keys. All arithmetic but the tile products' operands is float32.
"""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl


@triton.jit
def _load_rows(matrix, rows, count, features, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * features + columns[None, :]
    return tl.load(matrix + offsets, mask=(rows[:, None] < count) & (columns[None, :] < features), other=0.0)


@triton.jit
def _store_rows(matrix, values, rows, count, features, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * features + columns[None, :]
    tl.store(matrix + offsets, values, mask=(rows[:, None] < count) & (columns[None, :] < features))


@triton.jit
def _forward(
    Q, K, Scale, Loss, LogSum, rows, keys, features,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    q = _load_rows(Q, row, rows, features, BLOCK_D)
    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    positive = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _load_rows(K, column, keys, features, BLOCK_D)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        positive += tl.sum(tl.where(row[:, None] == column[None, :], logits, 0.0), 1)
        logits = tl.where(column[None, :] < keys, logits, -float("inf"))
        larger = tl.maximum(maximum, tl.max(logits, 1))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(logits - larger[:, None]), 1)
        maximum = larger
    log_sum = maximum + tl.log(total)
    tl.store(LogSum + row, log_sum, mask=row < rows)
    tl.store(Loss + row, log_sum - positive, mask=row < rows)


@triton.jit
def _slopes(q, k, scale, log_sum, weight, row, column, keys, PRECISION: tl.constexpr):
    """Return the tile's products before the scale, and d loss / d logits."""
    products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    logits = products * scale
    softmax = tl.where(column[None, :] < keys, tl.exp(logits - log_sum[:, None]), 0.0)
    return products, (softmax - tl.where(row[:, None] == column[None, :], 1.0, 0.0)) * weight[:, None]


@triton.jit
def _backward_queries(
    Q, K, Scale, LogSum, Weight, DQ, DScale, rows, keys, features,
    NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(Scale)
    q = _load_rows(Q, row, rows, features, BLOCK_D)
    log_sum = tl.load(LogSum + row, mask=row < rows, other=float("inf"))
    weight = tl.load(Weight + row, mask=row < rows, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dscale = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, keys, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _load_rows(K, column, keys, features, BLOCK_D)
        products, slopes = _slopes(q, k, scale, log_sum, weight, row, column, keys, PRECISION)
        if NEED_DSCALE:
            dscale += tl.sum(slopes * products, 1)
        if NEED_DQ:
            dq += tl.dot(slopes.to(k.dtype), k, input_precision=PRECISION)
    if NEED_DQ:
        _store_rows(DQ, dq * scale, row, rows, features, BLOCK_D)
    if NEED_DSCALE:
        tl.store(DScale + row, dscale, mask=row < rows)


@triton.jit
def _backward_keys(
    Q, K, Scale, LogSum, Weight, DK, rows, keys, features,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scale = tl.load(Scale)
    k = _load_rows(K, column, keys, features, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        q = _load_rows(Q, row, rows, features, BLOCK_D)
        log_sum = tl.load(LogSum + row, mask=row < rows, other=float("inf"))
        weight = tl.load(Weight + row, mask=row < rows, other=0.0)
        _, slopes = _slopes(q, k, scale, log_sum, weight, row, column, keys, PRECISION)
        dk += tl.dot(tl.trans(slopes.to(q.dtype)), q, input_precision=PRECISION)
    _store_rows(DK, dk * scale, column, keys, features, BLOCK_D)


def _options(q: torch.Tensor) -> dict:
    """Return the tile sizes and the float32 precision that torch's matmul setting asks for."""
    tf32 = q.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    block_d = max(16, triton.next_power_of_2(q.shape[1]))
    block = 64 if block_d <= 128 else 32
    return {
        "BLOCK_M": block,
        "BLOCK_N": block,
        "BLOCK_D": block_d,
        "PRECISION": "tf32" if tf32 else "ieee",
    }


def info_nce_forward(
    q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, loss: torch.Tensor, log_sum: torch.Tensor
) -> None:
    """Write the (N,) losses and log-sum-exps of ``scale * q @ k.T``; q (N, D) and k (M, D) contiguous."""
    if q.shape[0] == 0:
        return
    options = _options(q)
    grid = (triton.cdiv(q.shape[0], options["BLOCK_M"]),)
    _forward[grid](q, k, scale, loss, log_sum, q.shape[0], k.shape[0], q.shape[1], **options)


def info_nce_backward_queries(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    log_sum: torch.Tensor,
    weight: torch.Tensor,
    dq: torch.Tensor,
    dscale: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dq (N, D) and / dscale a row (N,); an empty output is not computed."""
    options = _options(q)
    grid = (triton.cdiv(q.shape[0], options["BLOCK_M"]),)
    _backward_queries[grid](
        q, k, scale, log_sum, weight, dq, dscale, q.shape[0], k.shape[0], q.shape[1],
        NEED_DQ=dq.numel() > 0, NEED_DSCALE=dscale.numel() > 0, **options,
    )  # fmt: skip


def info_nce_backward_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    log_sum: torch.Tensor,
    weight: torch.Tensor,
    dk: torch.Tensor,
) -> None:
    """Write d(sum weight * loss) / dk (M, D)."""
    options = _options(q)
    grid = (triton.cdiv(k.shape[0], options["BLOCK_N"]),)
    _backward_keys[grid](q, k, scale, log_sum, weight, dk, q.shape[0], k.shape[0], q.shape[1], **options)
