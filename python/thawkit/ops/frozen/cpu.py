"""The CPU kernel of the packed activations."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops._library import DTYPES, cpu_kernels, pointer, takes_only, threads

objection = takes_only("cpu")


def forward(x: Tensor, y: Tensor, mask: Tensor, lower: float, upper: float) -> None:
    """Write clamp(x) and its bits; all three dense in the same order."""
    cpu_kernels().packed_relu(
        pointer(x), pointer(y), pointer(mask), x.numel(), lower, upper, DTYPES[x.dtype], threads()
    )


def backward(g: Tensor, mask: Tensor, dx: Tensor) -> None:
    """Write ``dx = bit ? g : 0``."""
    cpu_kernels().packed_relu_backward(
        pointer(g), pointer(dx), pointer(mask), g.numel(), 0.0, 0.0, DTYPES[g.dtype], threads()
    )
