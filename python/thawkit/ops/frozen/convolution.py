"""Convolution with a frozen weight, a bias that may train, and a sum and a clamp in the same pass."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thawkit.ops.frozen import onednn
from thawkit.ops.frozen.geometry import Geometry
from thawkit.ops.frozen.masks import pack_clamp_, packed_relu_backward, packed_relu_backward_sum
from thawkit.ops.frozen.packed import Packed


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
    scale: Tensor,
    offset: Tensor,
    shift: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    other: Tensor | None = None,
    lower: float = -math.inf,
    upper: float = math.inf,
    packed: Packed | None = None,
) -> Tensor:
    """``clamp(conv(x, weight) + scale * bias + shift + offset + other, lower, upper)`` of frozen ``weight``.

    Saves one bit an element where there is a clamp, and no activation. A convolution followed by a batch
    normalization with fixed statistics is this with ``scale = gamma / sqrt(var + eps)``, ``weight`` scaled by
    it, ``offset = -scale * mean``, ``shift = beta``.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(O, C / groups, kH, kW)``, needs no gradient and never changes.
        scale, offset: ``(O,)``, need no gradient.
        shift, bias: ``(O,)``, may train.
        geometry: of the convolution.
        other: of the shape of the result.
        lower, upper: bounds; the gradient is 0 at and beyond one, NaN passes as in ``torch.relu``.
        packed: where kernels may keep the weight in their own layout.
    """
    arguments = x, other, shift, bias, weight, scale, offset, packed, geometry, lower, upper
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[:4]):
        return _Folded.apply(*arguments)
    y = _affine(*arguments[:9])
    return y if (lower, upper) == (-math.inf, math.inf) else y.clamp_(lower, upper)


def _affine(
    x: Tensor,
    other: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    offset: Tensor,
    packed: Packed | None,
    geometry: Geometry,
) -> Tensor:
    total = offset if shift is None else offset + shift
    if bias is not None:
        total = torch.addcmul(total, bias, scale)
    if packed is not None and onednn.takes(x, weight):
        return onednn.convolution(x, weight, total, geometry, other, packed)
    y = F.conv2d(x, weight, total, *geometry)
    if other is not None:
        y += other
    return y


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, _, shift, bias, weight, scale, _, packed, geometry, lower, upper = arguments
        y = _affine(*arguments[:9])
        clamps = lower > -math.inf or upper < math.inf
        ctx.save_for_backward(pack_clamp_(y, lower, upper) if clamps else None)
        ctx.weight, ctx.scale, ctx.packed, ctx.geometry = weight, scale, packed, geometry
        ctx.shape, ctx.strides = x.shape, y.stride()
        ctx.dtypes = [None if t is None else t.dtype for t in (shift, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        needs_x, needs_other, *needs_bias = ctx.needs_input_grad[:4]
        total = None
        if any(needs_bias):
            grad, total = packed_relu_backward_sum(grad, mask, ctx.strides)
        elif mask is not None:
            grad = packed_relu_backward(grad, mask, ctx.strides)
        grad_shift = total.to(ctx.dtypes[0]) if total is not None and needs_bias[0] else None
        grad_bias = (total * ctx.scale).to(ctx.dtypes[1]) if total is not None and needs_bias[1] else None
        grad_x = input_gradient(grad, ctx.weight, ctx.shape, ctx.geometry, ctx.packed) if needs_x else None
        return grad_x, grad if needs_other else None, grad_shift, grad_bias, *(None,) * 7


def input_gradient(
    grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry, packed: Packed | None = None
) -> Tensor:
    """Gradient of a convolution in its input, of the given ``shape``, whose values it does not depend on."""
    if packed is not None and not torch.is_grad_enabled() and onednn.takes(grad, weight):
        return onednn.input_gradient(grad, weight, shape, geometry, packed)
    stride, padding, dilation, groups = geometry
    shape_only = grad.new_empty(shape)
    options = stride, padding, dilation, False, (0,) * len(stride), groups
    return torch.ops.aten.convolution_backward(
        grad, shape_only, weight, None, *options, (True, False, False)
    )[0]
