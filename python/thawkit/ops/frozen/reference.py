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
    bits = None if mask is None else unpack(mask, g.shape, g.stride())
    d, total = masked_channel_sums(g, bits, 1)
    scale, mean = (t.view(-1, *[1] * (g.dim() - 2)) for t in (scale, mean))
    product = torch.zeros_like(total)
    if x is not None:
        apart = (x.to(total.dtype) - mean) * d
        if bits is not None:  # no 0 * inf where no gradient passes
            apart = torch.where(bits, apart, 0)
        product = masked_channel_sums(apart, None, 1)[1]
    return (d * scale).to(g.dtype), d, torch.stack([total, product])


GROUP = {8: 64, 4: 64, 2: 256}  # values that are rounded together, as csrc/common/quantize.h has it


def quantize(flat: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round ``(n,)`` values in groups of neighbours; return the packed codes and each group's numbers.

    8 and 4 bits: the lowest of levels at even distances between the group's least and greatest value, and
    the distance. 2 bits: four levels, the means of the parts into which the group falls at its mean and at
    1.2304 mean deviations to both sides. NaN for a group with a number that is not finite.
    """
    n, size = flat.numel(), GROUP[bits]
    dtype = torch.promote_types(flat.dtype, torch.float32)
    there = (torch.arange(-(-n // size) * size, device=flat.device) < n).view(-1, size)
    x = F.pad(flat.to(dtype), (0, there.numel() - n)).view(-1, size)
    strange = torch.where(there, x * 0, 0).sum(1, keepdim=True)
    if bits == 2:
        each = there / there.sum(1, keepdim=True)
        mean = (x * each).sum(1, keepdim=True)
        width = 1.2304 * ((x - mean).abs() * each).sum(1, keepdim=True)
        codes = (x > mean - width).int() + (x > mean) + (x > mean + width)
        part = codes.unsqueeze(2) == torch.arange(4, device=x.device)
        weight = part * each.unsqueeze(2)
        count = weight.sum(1)
        numbers = torch.where(count > 0, (weight * x.unsqueeze(2)).sum(1) / count, mean) + strange
    else:
        last = 2**bits - 1
        lowest = x.masked_fill(~there, torch.inf).amin(1, keepdim=True)
        highest = x.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
        step = (highest - lowest) / last
        at = (x - lowest) * torch.where(step < torch.finfo(torch.float32).tiny, 0, 1 / step)
        codes = at.round().nan_to_num(0).clamp(0, last).int()
        numbers = torch.cat([lowest, step], 1) + strange
    whole = -(-n * bits // 8) * (8 // bits)
    codes = torch.where(there, codes, 0).flatten()[:whole].view(-1, 8 // bits)
    codes = codes << torch.arange(0, 8, bits, device=x.device)
    return codes.sum(1).to(torch.uint8), numbers.flatten()


def dequantize(codes: Tensor, numbers: Tensor, bits: int, n: int) -> Tensor:
    """Return the ``(n,)`` values, in the dtype of ``numbers``, that :func:`quantize` made of others."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    codes = (codes.unsqueeze(1) >> shifts & 2**bits - 1).flatten()[:n].long()
    group = torch.arange(n, device=codes.device) // GROUP[bits]
    if bits == 2:
        return numbers.view(-1, 4)[group, codes]
    return numbers.view(-1, 2)[group, 0] + codes * numbers.view(-1, 2)[group, 1]
