"""What the functions that launch Triton kernels share."""

import torch
import triton


def given(x: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Return what a kernel takes for a tensor that it will not touch."""
    return other if x is None else x


def block_of(columns: int, most: int) -> int:
    """Return how many columns of a row are worked on at a time: a power of two from 16 to ``most``."""
    return min(most, max(16, triton.next_power_of_2(columns)))
