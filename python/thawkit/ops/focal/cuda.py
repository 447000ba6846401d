"""The CUDA kernel of the sigmoid focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, empty, pointer, stream, takes_only

objection = takes_only("cuda")


def _run(
    x: Tensor,
    t: Tensor,
    alpha: float,
    gamma: float,
    loss: Tensor | None,
    grad: Tensor | None,
    upstream: Tensor | None,
    factor: float,
) -> None:
    from thawkit import _C

    with torch.cuda.device(x.device):
        _C.sigmoid_focal_cuda(
            pointer(x),
            pointer(t),
            x.numel(),
            alpha,
            gamma,
            pointer(loss),
            pointer(grad),
            pointer(upstream),
            factor,
            0,
            DTYPES[x.dtype],
            0,
            stream(),
        )


def rows(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """Elementwise losses; x and t contiguous, of one dtype."""
    loss = torch.empty_like(x)
    _run(x, t, alpha, gamma, loss, None, None, 1.0)
    return loss


def total(
    x: Tensor, t: Tensor, alpha: float, gamma: float, factor: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``factor * sum(loss)`` as a float32 scalar, and its gradient."""
    loss = torch.empty_like(x)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    _run(x, t, alpha, gamma, loss, grad if need_gradient else None, None, factor)
    return loss.sum(dtype=torch.float32) * factor, grad


def backward(g: Tensor, x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """``g * d loss / dx``, elementwise."""
    grad = torch.empty_like(x)
    _run(x, t, alpha, gamma, None, grad, g, 1.0)
    return grad
