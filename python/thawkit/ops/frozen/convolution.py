"""Convolution with a frozen weight, a bias that may train, and a sum and a clamp in the same pass."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thawkit.ops.frozen import onednn
from thawkit.ops.frozen.geometry import Geometry
from thawkit.ops.frozen.masks import (
    pack_clamp_,
    pack_positive,
    packed_relu_backward,
    packed_relu_backward_sum,
)
from thawkit.ops.frozen.packed import Packed

CONVOLUTION = (F.conv1d, F.conv2d, F.conv3d)


def output_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    """Shape of the convolution of ``x``, ``(N, C, *sizes)``, and ``weight``, ``(O, C / groups, *kernel)``."""
    stride, padding, dilation, _ = geometry
    sizes = (
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, kernel, s, p, d in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    )
    return x.shape[0], weight.shape[0], *sizes


def folded_convolution(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    offset: Tensor,
    shift: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    other: Tensor | None = None,
    lower: float = -math.inf,
    upper: float = math.inf,
    keep: bool = False,
    packed: Packed | None = None,
    exact: bool = True,
) -> Tensor:
    """``clamp(scale * (conv(x, weight) + bias) + shift + offset + other, lower, upper)``.

    Saves one bit an element where there is a clamp, and no activation but, with ``keep``, the result. A
    convolution followed by a batch normalization with fixed statistics is this with
    ``scale = gamma / sqrt(var + eps)``, ``offset = -scale * mean``, ``shift = beta``. The weight is scaled
    once for each layout in ``packed``, without one at each call.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(O, C / groups, kH, kW)``, needs no gradient.
        scale, offset: ``(O,)``, need no gradient; no scale for 1.
        shift, bias: ``(O,)``, may train.
        geometry: of the convolution.
        other: of the shape of the result.
        lower, upper: bounds; the gradient is 0 at and beyond one, NaN passes as in ``torch.relu``.
        keep: save the result in place of the bits, as where the next layer saves it anyway.
        packed: where kernels may keep the weight in their own layout.
        exact: False where NaN need not pass the clamp if no gradient is recorded, which is then faster.
    """
    arguments = x, other, shift, bias, weight, scale, offset, packed, geometry, lower, upper, keep
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[:4]):
        return _Folded.apply(*arguments)
    if not exact:
        return _affine(*arguments[:9], lower, upper)
    return _clamped_(_affine(*arguments[:9]), lower, upper)


def _clamped_(y: Tensor, lower: float, upper: float) -> Tensor:
    return y if (lower, upper) == (-math.inf, math.inf) else y.clamp_(lower, upper)


def _affine(
    x: Tensor,
    other: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    offset: Tensor,
    packed: Packed | None,
    geometry: Geometry,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> Tensor:
    """The result before its clamp, or after one through which NaN may not pass."""
    total = offset if shift is None else offset + shift
    if bias is not None:
        total = total + bias if scale is None else torch.addcmul(total, bias, scale)
    if packed is not None and onednn.takes(x, weight):
        return onednn.convolution(x, weight, scale, total, geometry, other, packed, lower, upper)
    y = F.conv2d(x, onednn.scaled(weight, scale), total, *geometry)
    if other is not None:
        y += other
    return _clamped_(y, lower, upper)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, _, shift, bias, weight, scale, _, packed, geometry, lower, upper, keep = arguments
        y = _affine(*arguments[:9])
        clamps = lower > -math.inf or upper < math.inf
        keep = keep and clamps
        mask = None if keep or not clamps else pack_clamp_(y, lower, upper)
        kept = y.clamp_(lower, upper) if keep else mask
        ctx.save_for_backward(kept, weight if ctx.needs_input_grad[0] else None)
        ctx.bounds = (lower, upper) if keep else None
        ctx.scale, ctx.packed, ctx.geometry = scale, packed, geometry
        ctx.layout, ctx.strides = (x.shape, x.stride()), y.stride()
        ctx.dtypes = [None if t is None else t.dtype for t in (shift, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, weight = ctx.saved_tensors
        if ctx.bounds is not None:
            mask = pack_positive(mask, *ctx.bounds)
        needs_x, needs_other, *needs_bias = ctx.needs_input_grad[:4]
        total = None
        if any(needs_bias):
            grad, total = packed_relu_backward_sum(grad, mask, ctx.strides)
        elif mask is not None:
            grad = packed_relu_backward(grad, mask, ctx.strides)
        grad_shift = total.to(ctx.dtypes[0]) if total is not None and needs_bias[0] else None
        grad_bias = None
        if total is not None and needs_bias[1]:
            grad_bias = (total if ctx.scale is None else total * ctx.scale).to(ctx.dtypes[1])
        grad_x = _folded_input_gradient(ctx, grad, weight) if needs_x else None
        return grad_x, grad if needs_other else None, grad_shift, grad_bias, *(None,) * 8


def _folded_input_gradient(ctx: Any, grad: Tensor, weight: Tensor) -> Tensor:
    scale, packed = ctx.scale, ctx.packed
    if packed is not None and not torch.is_grad_enabled() and onednn.takes(grad, weight):
        return onednn.input_gradient(grad, weight, scale, ctx.layout[0], ctx.geometry, packed)
    return input_gradient(
        grad, ctx.layout, onednn.scaled(weight, scale), ctx.geometry[:3], ctx.geometry.groups
    )


def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], groups: int
) -> Tensor:
    """Gradient in a convolution's weight, of which only shape and dtype are read."""
    stride, padding, dilation = geometry
    zeros = (0,) * len(stride)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, zeros, groups, (False, True, False)
    )[1]


def input_gradient(
    grad: Tensor,
    layout: tuple[Any, ...],
    weight: Tensor,
    geometry: tuple[Any, ...],
    groups: int,
) -> Tensor:
    """Gradient in a convolution's input of the given shape and strides."""
    stride, padding, dilation = geometry
    zeros = (0,) * len(stride)
    shape_only = grad.new_empty_strided(*layout)  # its values do not enter
    return torch.ops.aten.convolution_backward(
        grad, shape_only, weight, None, stride, padding, dilation, False, zeros, groups, (True, False, False)
    )[0]


def bias_gradient(grad: Tensor, channel_dim: int, dtype: torch.dtype) -> Tensor:
    """Sum ``grad`` over everything but the channels."""
    channel_dim %= grad.dim()
    return grad.sum([d for d in range(grad.dim()) if d != channel_dim], dtype=dtype)
