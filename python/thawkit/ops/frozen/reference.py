"""The definition of the frozen-network operators, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def packed_relu(x: Tensor, lower: float, upper: float, inplace: bool = False) -> Tensor:
    """``clamp(x, lower, upper)`` whose gradient is 0 at and beyond a bound: relu without an upper one."""
    if upper == math.inf:
        return F.threshold(x, lower, lower, inplace)
    return F.hardtanh(x, lower, upper, inplace)


def packed_clamp(x: Tensor, lower: float | None, upper: float | None, inplace: bool = False) -> Tensor:
    """``torch.clamp``, whose gradient is 0 at and beyond a bound and at NaN."""
    return (torch.clamp_ if inplace else torch.clamp)(x, lower, upper)


def packed_abs(x: Tensor, inplace: bool = False) -> Tensor:
    """``torch.abs``, whose gradient is 0 at 0."""
    return (torch.abs_ if inplace else torch.abs)(x)


def pack(bits: Tensor) -> Tensor:
    """Pack booleans, in the order in which they lie in memory, into bytes: element i is bit i % 8."""
    flat = bits.as_strided((bits.numel(),), (1,)).to(torch.uint8)
    flat = F.pad(flat, (0, -bits.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack(mask: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Return the booleans that :func:`pack` took."""
    bits = mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    return bits.flatten().bool().as_strided(tuple(shape), tuple(strides))


def pack_positive(y: Tensor, lower: float, upper: float) -> Tensor:
    """The bits of ``lower < y < upper`` or, without an upper bound, of not ``y <= lower``."""
    lower, upper = (float(torch.tensor(bound, dtype=y.dtype)) for bound in (lower, upper))
    return pack(~(y <= lower) if upper == math.inf else (y > lower) & (y < upper))


def masked_channel_sums(g: Tensor, bits: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """``bit ? g : 0`` and its sums over all dimensions but one, in at least float32."""
    dx = g if bits is None else torch.where(bits, g, torch.zeros((), dtype=g.dtype, device=g.device))
    others = [d for d in range(g.dim()) if d != dim % g.dim()]
    dtype = torch.promote_types(g.dtype, torch.float32)
    return dx, dx.sum(others, dtype=dtype) if others else dx.to(dtype)


def channel_affine(
    x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, lower: float, upper: float
) -> tuple[Tensor, Tensor]:
    """``clamp(x * scale + shift + other, lower, upper)`` by channel, and the bits of the clamp."""
    scale, shift = (t.view(-1, *[1] * (x.dim() - 2)) for t in (scale, shift))
    y = x * scale + shift
    if other is not None:
        y = y + other
    y = torch.empty_like(x).copy_(y)
    bits = ~(y <= lower) if upper == math.inf else (y > lower) & (y < upper)
    return y.clamp(lower, upper), pack(bits)


def channel_affine_gradient(
    g: Tensor, x: Tensor | None, mask: Tensor | None, scale: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x and other, and the sums by channel of d, that in other, and of ``d (x - mean)``."""
    d = g
    if mask is not None:
        d = torch.where(unpack(mask, g.shape, g.stride()), g, torch.zeros((), dtype=g.dtype, device=g.device))
    scale, mean = (t.view(-1, *[1] * (g.dim() - 2)) for t in (scale, mean))
    others = [i for i in range(g.dim()) if i != 1]
    wide = torch.promote_types(g.dtype, torch.float32)
    product = torch.zeros(1, dtype=wide) if x is None else (x.to(wide) - mean) * d
    if x is not None and mask is not None:  # no 0 * inf where no gradient passes
        product = torch.where(unpack(mask, g.shape, g.stride()), product, 0)
    sums = [d.sum(others, dtype=wide), product.sum(others if x is not None else 0).expand(g.shape[1])]
    return (d * scale).to(g.dtype), d, torch.stack(sums)
