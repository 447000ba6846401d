"""The CPU kernels of the focal losses: one read of logits and targets gives loss and gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops._library import DTYPES, cpu_kernels, empty, pointer, takes_only, threads

if TYPE_CHECKING:
    from thawkit.ops.focal.sigmoid_operators import Options
    from thawkit.ops.focal.softmax_operators import Options as SoftmaxOptions

objection = takes_only("cpu")


def divided(factor: float, divisor: Tensor | None) -> float:
    """Return the factor over a divisor that this kernel may wait for; over 0, infinity."""
    return factor if divisor is None else (factor / divisor).item()


def _run(
    x: Tensor,
    t: Tensor,
    options: Options,
    loss: Tensor | None,
    grad: Tensor | None,
    upstream: Tensor | None,
    factor: float,
    total: Tensor | None,
) -> None:
    indices = t.dim() < x.dim()
    cpu_kernels().sigmoid_focal(
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
        pointer(total),
        DTYPES[x.dtype],
        threads(),
        pointer(options.classes),
        options.period,
        pointer(options.mask),
        pointer(options.row_weight),
        x.shape[-1] if indices else options.row,
        indices,
        math.nan if options.ignored is None else options.ignored,
        options.smoothing,
        options.separate,
    )


def rows(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """Elementwise losses; all tensors contiguous, x and t of one dtype or t of class indices."""
    loss = torch.empty_like(x)
    _run(x, t, options, loss, None, None, 1.0, None)
    return loss


def total(
    x: Tensor, t: Tensor, options: Options, factor: float, divisor: Tensor | None, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``factor / divisor * sum(loss)`` as a float32 scalar, and its gradient."""
    factor = divided(factor, divisor)
    value = x.new_empty((), dtype=torch.float32)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    _run(x, t, options, None, grad if need_gradient else None, None, factor, value)
    return value, grad


def backward(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """``g * d loss / dx``, elementwise."""
    grad = torch.empty_like(x)
    _run(x, t, options, None, grad, g, 1.0, None)
    return grad


def _run_softmax(
    x: Tensor,
    t: Tensor,
    options: SoftmaxOptions,
    loss: Tensor | None,
    grad: Tensor | None,
    upstream: Tensor | None,
    factor: float,
    total: Tensor | None,
) -> None:
    strange = torch.full((), options.ignored, dtype=torch.int64, device=x.device)
    probable = t.is_floating_point()
    arguments = [
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
        pointer(total),
        strange.data_ptr(),
    ]
    kernels = cpu_kernels()
    count = threads()
    workspace = x.new_empty(kernels.softmax_focal_workspace(*arguments, 0, count), dtype=torch.float32)
    kernels.softmax_focal(*arguments, workspace.data_ptr(), count)
    if not probable and strange.item() != options.ignored:
        raise ThawkitError(
            f"target must hold class indices 0 to {x.shape[1] - 1} or ignore_index={options.ignored}, "
            f"got {strange.item()}"
        )


def softmax_rows(x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """Losses of (N, C, ...) logits, (N, ...) in float32; all tensors contiguous."""
    loss = x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32)
    if loss.numel():
        _run_softmax(x, t, options, loss, None, None, 1.0, None)
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
    factor = divided(factor, divisor)
    value = x.new_zeros((), dtype=torch.float32)
    grad = torch.empty_like(x) if need_gradient else empty(x)
    if x.numel():
        _run_softmax(x, t, options, None, grad, None, factor, value)
    return value, grad


def softmax_backward(g: Tensor, x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """``g * d loss / dx`` for g of the losses' shape."""
    grad = torch.empty_like(x)
    if x.numel():
        _run_softmax(x, t, options, None, grad, g, 1.0, None)
    return grad
