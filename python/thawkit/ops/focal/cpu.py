"""The CPU kernel of the sigmoid focal loss: one read of logits and targets gives loss and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, cpu_kernels, empty, pointer, takes_only, threads

objection = takes_only("cpu")


def _run(
    x: Tensor,
    t: Tensor,
    alpha: float,
    gamma: float,
    loss: Tensor | None,
    grad: Tensor | None,
    upstream: Tensor | None,
    factor: float,
    total: Tensor | None,
) -> None:
    cpu_kernels().sigmoid_focal(
        pointer(x),
        pointer(t),
        x.numel(),
        alpha,
        gamma,
        pointer(loss),
        pointer(grad),
        pointer(upstream),
        factor,
        pointer(total),
        DTYPES[x.dtype],
        threads(),
    )


def rows(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """Elementwise losses; x and t contiguous, of one dtype."""
    loss = torch.empty_like(x)
    _run(x, t, alpha, gamma, loss, None, None, 1.0, None)
    return loss


def total(
    x: Tensor, t: Tensor, alpha: float, gamma: float, factor: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``factor * sum(loss)`` as a float32 scalar, and its gradient."""
    value = torch.zeros((), dtype=torch.float64)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    _run(x, t, alpha, gamma, None, grad, None, factor, value)
    return (value * factor).float(), grad


def backward(g: Tensor, x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """``g * d loss / dx``, elementwise."""
    grad = torch.empty_like(x)
    _run(x, t, alpha, gamma, None, grad, g, 1.0, None)
    return grad
