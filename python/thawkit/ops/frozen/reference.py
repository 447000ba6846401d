"""The definition of the frozen-network operators, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed_relu(x: Tensor, lower: float, upper: float, inplace: bool = False) -> Tensor:
    """``clamp(x, lower, upper)`` whose gradient is 0 at and beyond a bound: relu without an upper one."""
    if upper == math.inf:
        return torch.nn.functional.threshold(x, lower, lower, inplace)
    return torch.nn.functional.hardtanh(x, lower, upper, inplace)
