"""Batch normalization with fixed statistics, a sum and a clamp in one pass; saves what its scale needs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen import reference
from thawkit.ops.frozen.convolution import bias_gradient
from thawkit.ops.frozen.masks import (
    KERNELS,
    channel_layout,
    empty_mask,
    is_dense,
    kernels,
    laid_out,
    pack_positive,
    packed_relu_backward,
)


def fixed_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    *,
    other: Tensor | None = None,
    lower: float = -math.inf,
    upper: float = math.inf,
    keep: bool = False,
) -> Tensor:
    """``clamp((x - mean) / sqrt(variance + eps) * weight + bias + other, lower, upper)`` by channel.

    Saves one bit an element where there is a clamp, ``x`` where ``weight`` trains, and nothing else.

    Args:
        x: ``(N, C, *sizes)``, floating.
        weight, bias: ``(C,)``; None for 1 and 0.
        mean, variance: ``(C,)``, the running statistics; need no gradient.
        eps: added to the variance.
        other: of the shape and dtype of ``x``.
        lower, upper: bounds; the gradient is 0 at and beyond one, NaN passes as in ``torch.relu``.
        keep: save the result in place of the bits, as where the next layer saves it anyway.

    Returns:
        Of the shape, dtype and memory order of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating or has no channels, or ``other`` has another shape.
    """
    checks.floating("x", x)
    if x.dim() < 2 or x.shape[1] != mean.numel():
        raise ThawkitError(f"x must be (N, {mean.numel()}, *sizes), got shape {tuple(x.shape)}")
    if other is not None and other.shape != x.shape:
        raise ThawkitError(f"other must have the shape of x, {tuple(x.shape)}, got {tuple(other.shape)}")
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        inverse = torch.rsqrt(variance.to(wide) + eps)
    return _FixedBatchNorm.apply(x, other, weight, bias, mean.to(wide), inverse, lower, upper, keep)


class _FixedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, other, weight, bias, mean, inverse, lower, upper, keep = arguments
        scale = inverse if weight is None else weight * inverse
        shift = -mean * scale if bias is None else torch.addcmul(bias.to(scale.dtype), mean, scale, value=-1)
        if not is_dense(x):
            x = x.contiguous()
        y, mask = _affine(x, other, scale, shift, lower, upper)
        needs_x, _, needs_weight = ctx.needs_input_grad[:3]
        clamps = (lower, upper) != (-math.inf, math.inf)
        ctx.bounds = (lower, upper) if clamps and keep else None
        ctx.save_for_backward(
            x if needs_weight else None,
            (y if keep else mask) if clamps else None,
            weight if needs_x else None,
        )
        ctx.mean, ctx.inverse, ctx.strides = mean, inverse, y.stride()
        ctx.dtypes = [None if t is None else t.dtype for t in (x, other, weight, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, weight = ctx.saved_tensors
        if ctx.bounds is not None:
            mask = pack_positive(mask, *ctx.bounds)
        mean, inverse = ctx.mean, ctx.inverse
        needs_x, needs_other, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        scale = inverse if weight is None else weight * inverse
        if torch.is_grad_enabled():  # to be differentiated again
            if mask is not None:
                grad = packed_relu_backward(grad, mask, ctx.strides)
            wide = grad.to(inverse.dtype)
            gradients = (
                wide * _by_channel(scale, grad) if needs_x else None,
                grad if needs_other else None,
                bias_gradient((x - _by_channel(mean, x)) * wide, 1, wide.dtype) * inverse
                if needs_weight
                else None,
                bias_gradient(wide, 1, wide.dtype) if needs_bias else None,
            )
        else:
            dx, dother, sums = _affine_gradient(
                laid_out(grad, ctx.strides), x, mask, scale, mean, needs_x, needs_other
            )
            gradients = (
                dx if needs_x else None,
                (grad if mask is None else dother) if needs_other else None,
                sums[1] * inverse if needs_weight else None,
                sums[0] if needs_bias else None,
            )
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
        return *cast, *(None,) * 5


def _by_channel(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (like.dim() - 2))


def _affine(
    x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, lower: float, upper: float
) -> tuple[Tensor, Tensor]:
    if choose("fixed_batch_norm", KERNELS, x) == "reference":
        return reference.channel_affine(x, other, scale, shift, lower, upper)
    return _affine_op(x, other, scale.float(), shift.float(), lower, upper)


def _affine_gradient(
    g: Tensor,
    x: Tensor | None,
    mask: Tensor | None,
    scale: Tensor,
    mean: Tensor,
    needs_x: bool,
    needs_other: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if choose("fixed_batch_norm", KERNELS, g) == "reference":
        return reference.channel_affine_gradient(g, x, mask, scale, mean)
    wanted = needs_x, needs_other and mask is not None
    return _affine_gradient_op(g, x, mask, scale.float(), mean.float(), *wanted)


def _affine_kernel(
    x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, lower: float, upper: float
) -> tuple[Tensor, Tensor | None]:
    y = torch.empty_like(x)
    other = None if other is None else laid_out(other, x.stride())
    mask = empty_mask(x) if lower > -math.inf or upper < math.inf else None
    kernels(x).channel_affine(x, other, y, mask, channel_layout(x, 1), scale, shift, lower, upper)
    return y, mask


def _affine_gradient_kernel(
    g: Tensor, x: Tensor | None, mask: Tensor | None, scale: Tensor, mean: Tensor, to_x: bool, to_other: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    dx, dother = torch.empty_like(g) if to_x else None, torch.empty_like(g) if to_other else None
    sums = g.new_empty(2, g.shape[1], dtype=torch.float32)
    kernels(g).channel_affine_backward(
        g, x, mask, dx, dother, sums, channel_layout(g, 1), scale.contiguous(), mean.contiguous()
    )
    return dx, dother, sums


def _fake_affine_gradient(
    g: Tensor, x: Tensor | None, mask: Tensor | None, scale: Tensor, mean: Tensor, to_x: bool, to_other: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dother = (torch.empty_like(g) if wanted else g.new_empty(0) for wanted in (to_x, to_other))
    return dx, dother, g.new_empty(2, g.shape[1], dtype=torch.float32)


# Both take tensors that are dense, in one order; what they say is in csrc/cpu/kernels.h.
_affine_op = define(
    "channel_affine(Tensor x, Tensor? other, Tensor scale, Tensor shift, float lower, float upper) "
    "-> (Tensor, Tensor)",
    _affine_kernel,
    lambda x, other, scale, shift, lower, upper: (
        torch.empty_like(x),
        empty_mask(x) if lower > -math.inf or upper < math.inf else x.new_empty(0, dtype=torch.uint8),
    ),
)
_affine_gradient_op = define(
    "channel_affine_gradient(Tensor g, Tensor? x, Tensor? mask, Tensor scale, Tensor mean, bool to_x, "
    "bool to_other) -> (Tensor, Tensor, Tensor)",
    _affine_gradient_kernel,
    _fake_affine_gradient,
)
