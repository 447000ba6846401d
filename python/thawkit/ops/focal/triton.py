"""The Triton kernels of the focal losses: one read of logits and targets gives loss and gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thawkit.ops._library import dtype_objection, empty

if TYPE_CHECKING:
    from thawkit.ops.focal.sigmoid_operators import Options
    from thawkit.ops.focal.softmax_operators import Options as SoftmaxOptions


objection = dtype_objection


def _sums(x: Tensor, programs: int) -> Tensor:
    return x.new_empty(programs, dtype=torch.float32)


def _scaled(sums: Tensor, factor: float, divisor: Tensor | None) -> Tensor:
    value = sums.sum() * factor
    return value if divisor is None else value / divisor


def _run(x: Tensor, t: Tensor, options: Options, **out: Any) -> None:
    from thawkit.kernels import focal as kernels

    kernels.sigmoid_focal(
        x,
        t,
        kernels.Outputs(**out),
        positive=options.positive,
        negative=options.negative,
        gamma=options.gamma,
        smoothing=options.smoothing,
        separate=options.separate,
        ignored=options.ignored,
        classes=options.classes,
        period=options.period,
        mask=options.mask,
        row_weight=options.row_weight,
        row=options.row,
    )


def rows(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """Elementwise losses; all tensors contiguous, x and t of one dtype or t of class indices."""
    loss = torch.empty_like(x)
    _run(x, t, options, loss=loss)
    return loss


def total(
    x: Tensor, t: Tensor, options: Options, factor: float, divisor: Tensor | None, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``factor / divisor * sum(loss)`` as a float32 scalar, and its gradient."""
    from thawkit.kernels import focal as kernels

    sums = _sums(x, kernels.sigmoid_programs(x.numel()))
    grad = torch.empty_like(x) if need_gradient else None
    _run(x, t, options, total=sums, grad=grad, factor=factor, divisor=divisor)
    return _scaled(sums, factor, divisor), empty(x) if grad is None else grad


def backward(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """``g * d loss / dx``, elementwise."""
    grad = torch.empty_like(x)
    _run(x, t, options, grad=grad, upstream=g)
    return grad


def _run_softmax(x: Tensor, t: Tensor, options: SoftmaxOptions, **out: Any) -> None:
    from thawkit.kernels import focal as kernels

    kernels.softmax_focal(
        x,
        t,
        kernels.Outputs(**out),
        gamma=options.gamma,
        alpha=options.alpha,
        offset=options.offset,
        margin=options.margin,
        scale=options.scale,
        smoothing=options.smoothing,
        ignored=options.ignored,
    )


def softmax_rows(x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """Losses of (N, C, ...) logits, (N, ...) in float32; all tensors contiguous.

    A class index that is neither a class nor ignored gives NaN: to look for it would wait for the device.
    """
    loss = x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32)
    _run_softmax(x, t, options, loss=loss)
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
    from thawkit.kernels import focal as kernels

    samples, classes, inner = x.shape[0], x.shape[1], x.shape[2:].numel()
    sums = _sums(x, kernels.softmax_programs(samples, classes, inner) if x.numel() else 0)
    grad = torch.empty_like(x) if need_gradient else None
    _run_softmax(x, t, options, total=sums, grad=grad, factor=factor, divisor=divisor)
    return _scaled(sums, factor, divisor), empty(x) if grad is None else grad


def softmax_backward(g: Tensor, x: Tensor, t: Tensor, options: SoftmaxOptions) -> Tensor:
    """``g * d loss / dx`` for g of the losses' shape."""
    grad = torch.empty_like(x)
    _run_softmax(x, t, options, grad=grad, upstream=g)
    return grad
