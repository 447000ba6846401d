"""The pairwise engine on CUDA without Triton: panels of cuBLAS products, one epilogue kernel on each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thawkit.ops._library import empty, pointer, stream, takes_only
from thawkit.ops.pairwise.rows import through_norm, unit_rows

# scores (R, M) in place, first row, row weights, weight, scale, losses (R,), dscale (R,) or empty, gradient?
Epilogue = Callable[[Tensor, int, Tensor | None, float, Tensor, Tensor, Tensor, bool], None]

_PANEL_BYTES = 32 << 20  # a float32 panel of this size stays in the L2 cache of a data-centre GPU


objection = takes_only("cuda")


def epilogue(
    scores: Tensor,
    first: int,
    row_weight: Tensor | None,
    weight: float,
    scale: Tensor,
    loss: Tensor,
    dscale: Tensor,
    gradient: bool,
) -> None:
    """Run the CUDA epilogue kernel on one panel."""
    from thawkit import _C

    with torch.cuda.device(scores.device):
        _C.info_nce_panel_cuda(
            pointer(scores),
            scores.shape[0],
            scores.shape[1],
            scores.stride(0),
            first,
            pointer(row_weight),
            weight,
            pointer(scale),
            pointer(loss),
            pointer(dscale),
            gradient,
            stream(),
        )


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
    run_epilogue: Epilogue = epilogue,
    panel_bytes: int = _PANEL_BYTES,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses of the rows (float32), their weighted sum and its gradients.

    Inputs of half precision keep it in the products, which accumulate in float32. ``run_epilogue`` is a
    parameter so that the driver is tested where there is no CUDA.
    """
    rows, keys = q.shape[0], k.shape[0]
    scale32 = scale.to(device=q.device, dtype=torch.float32)
    (queries, q_norm), (unit_keys, k_norm) = unit_rows(q, normalize), unit_rows(k, normalize)
    gradient = need_dq or need_dk or need_dscale

    loss = torch.empty(rows, dtype=torch.float32, device=q.device)
    dq = torch.empty(q.shape, dtype=torch.float32, device=q.device) if need_dq else empty(q)
    dk = torch.zeros(k.shape, dtype=torch.float32, device=q.device) if need_dk else empty(k)
    dscale = torch.empty_like(loss) if need_dscale else empty(loss)
    height = max(1, min(rows, panel_bytes // (4 * max(keys, 1))))
    for first in range(0, rows, height):
        here = slice(first, first + height)
        scores = _product(queries[here], unit_keys.t())
        run_epilogue(
            scores,
            first,
            None if row_weight is None else row_weight[here].float().contiguous(),
            weight,
            scale32,
            loss[here],
            dscale[here],
            gradient,
        )
        if gradient:
            weights = scores.to(q.dtype)
            if need_dq:
                dq[here] = _product(weights, unit_keys) * scale32
            if need_dk:
                dk += _product(weights.t(), queries[here])
    if need_dk:
        dk *= scale32
    if normalize:
        dq = through_norm(dq, q, q_norm) if need_dq else dq
        dk = through_norm(dk, k, k_norm) if need_dk else dk
    total = loss.sum() * weight if row_weight is None else (loss * row_weight).sum()
    return loss, total, dq.to(q.dtype), dk.to(k.dtype), dscale.sum() if need_dscale else dscale


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, never rounded to half precision on the way."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
