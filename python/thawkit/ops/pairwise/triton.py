"""The pairwise engine's Triton kernels: tiles of logits are used where they are made and never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, empty
from thawkit.ops.pairwise.rows import through_norm, unit_rows

_MOST_FEATURES = 512  # a tile holds whole rows; beyond this it leaves shared memory


def objection(x: Tensor, *others: Tensor) -> str:
    """Return what the kernels cannot take, or an empty string."""
    for tensor in (x, *others):
        if tensor.dtype not in DTYPES:
            return f"takes float32, bfloat16 and float16, not {tensor.dtype}"
        if tensor.shape[-1] > _MOST_FEATURES:
            return f"takes at most {_MOST_FEATURES} features, not {tensor.shape[-1]}"
    return ""


def info_nce(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses of the rows (float32), their weighted sum and its gradients."""
    from thawkit.kernels import pairwise as kernels

    rows, keys = q.shape[0], k.shape[0]
    scale32 = scale.to(device=q.device, dtype=torch.float32)
    (queries, q_norm), (unit_keys, k_norm) = unit_rows(q, normalize), unit_rows(k, normalize)
    queries, unit_keys = queries.contiguous(), unit_keys.contiguous()
    loss = torch.empty(rows, dtype=torch.float32, device=q.device)
    log_sum = torch.empty_like(loss)
    kernels.info_nce_forward(queries, unit_keys, scale32, loss, log_sum)

    weights = torch.full_like(loss, weight) if row_weight is None else row_weight.float().contiguous()
    dq = torch.empty(q.shape, dtype=torch.float32, device=q.device) if need_dq else empty(q)
    dk = torch.empty(k.shape, dtype=torch.float32, device=q.device) if need_dk else empty(k)
    dscale = torch.empty_like(loss) if need_dscale else empty(loss)
    if rows and (need_dq or need_dscale):
        kernels.info_nce_backward_queries(queries, unit_keys, scale32, log_sum, weights, dq, dscale)
    if keys and need_dk:
        kernels.info_nce_backward_keys(queries, unit_keys, scale32, log_sum, weights, dk)
    if normalize:
        dq = through_norm(dq, q, q_norm) if need_dq else dq
        dk = through_norm(dk, k, k_norm) if need_dk else dk
    total = (loss * weights).sum()
    return loss, total, dq.to(q.dtype), dk.to(k.dtype), dscale.sum() if need_dscale else dscale
