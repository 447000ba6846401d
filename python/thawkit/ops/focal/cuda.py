"""The CUDA kernels of the focal losses: one read of logits and targets gives loss and gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, empty, pointer, stream, takes_only

if TYPE_CHECKING:
    from thawkit.ops.focal.sigmoid_operators import Options
    from thawkit.ops.focal.softmax_operators import Options as SoftmaxOptions

objection = takes_only("cuda")


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

    indices = t.dim() < x.dim()
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
            pointer(options.classes),
            options.period,
            pointer(options.mask),
            pointer(options.row_weight),
            x.shape[-1] if indices else options.row,
            indices,
            math.nan if options.ignored is None else options.ignored,
            options.smoothing,
            options.separate,
            stream(),
        )


def rows(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """Elementwise losses; all tensors contiguous, x and t of one dtype or t of class indices."""
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


def _run_softmax(
    x: Tensor,
    t: Tensor,
    options: SoftmaxOptions,
    loss: Tensor | None,
    grad: Tensor | None,
    upstream: Tensor | None,
    factor: float,
) -> None:
    from thawkit import _C

    probable = t.is_floating_point()
    with torch.cuda.device(x.device):
        _C.softmax_focal_cuda(
            pointer(x),
            DTYPES[x.dtype],
            x.shape[0],
            x.shape[1],
            x.shape[2:].numel(),
            0 if probable else pointer(t),
            pointer(t) if probable else 0,
            DTYPES[t.dtype] if probable else 0,
            pointer(options.alpha),
            pointer(options.offset),
            pointer(options.margin),
            options.scale,
            options.gamma,
            options.smoothing,
            options.ignored,
            pointer(loss),
            pointer(grad),
            pointer(upstream),
            factor,
            *(0, 0, 0, 0),  # the CPU's total, strange class, workspace and threads
            stream(),
        )


def softmax_rows(x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """Losses of (N, C, ...) logits, (N, ...) in float32; all tensors contiguous.

    A class index that is neither a class nor ignored gives NaN: to look for it would wait for the device.
    """
    loss = x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32)
    _run_softmax(x, t, options, loss, None, None, 1.0)
    return loss


def softmax_total(
    x: Tensor,
    t: Tensor,
    options: SoftmaxOptions,
    factor: float,
    divisor: Tensor | None,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """``factor / divisor * sum(loss)`` as a float32 scalar, and its gradient."""
    loss = x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    upstream = None if divisor is None else (factor / divisor).float().expand(loss.shape).contiguous()
    _run_softmax(x, t, options, loss, grad if need_gradient else None, upstream, factor)
    value = loss.sum() * factor
    return value if divisor is None else value / divisor, grad


def softmax_backward(g: Tensor, x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """``g * d loss / dx`` for g of the losses' shape."""
    grad = torch.empty_like(x)
    _run_softmax(x, t, options, None, grad, g, 1.0)
    return grad
