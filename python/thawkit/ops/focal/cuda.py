"""The CUDA kernel of the sigmoid focal loss with a number for alpha, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, empty, pointer, stream, takes_only

if TYPE_CHECKING:
    from thawkit.ops.focal.sigmoid_operators import Options

objection = takes_only("cuda")


def objection_to_options(*tensors: Tensor) -> str:
    """Say what the kernel cannot take where a call has more than a number for alpha, and gamma."""
    return (
        objection(*tensors)
        or "has no class indices, class weights, pos_weight, mask, ignore_index or label_smoothing yet"
    )


def _run(
    x: Tensor,
    t: Tensor,
    options: Options,
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
            options.positive,
            options.negative,
            options.gamma,
            pointer(loss),
            pointer(grad),
            pointer(upstream),
            factor,
            0,
            DTYPES[x.dtype],
            0,
            *(0, 1, 0, 0, 1, False, 0.0, 0.0, False),  # options of the CPU's kernel
            stream(),
        )


def rows(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """Elementwise losses; x and t contiguous, of one dtype."""
    loss = torch.empty_like(x)
    _run(x, t, options, loss, None, None, 1.0)
    return loss


def total(
    x: Tensor, t: Tensor, options: Options, factor: float, divisor: Tensor | None, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``factor / divisor * sum(loss)`` as a float32 scalar, and its gradient."""
    loss = torch.empty_like(x)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    _run(x, t, options, loss, grad if need_gradient else None, None, factor)
    value = loss.sum(dtype=torch.float32) * factor
    if divisor is not None:
        value, grad = value / divisor, grad.div_(divisor)
    return value, grad


def backward(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """``g * d loss / dx``, elementwise."""
    grad = torch.empty_like(x)
    _run(x, t, options, None, grad, g, 1.0)
    return grad
