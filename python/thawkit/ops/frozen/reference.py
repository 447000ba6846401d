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
