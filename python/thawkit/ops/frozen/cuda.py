"""The CUDA kernel of the packed activations."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, pointer, stream, takes_only

objection = takes_only("cuda")


def forward(x: Tensor, y: Tensor, mask: Tensor, lower: float, upper: float) -> None:
    """Write clamp(x) and its bits; all three dense in the same order."""
    from thawkit import _C

    with torch.cuda.device(x.device):
        _C.packed_relu_cuda(
            pointer(x), pointer(y), pointer(mask), x.numel(), lower, upper, DTYPES[x.dtype], 0, stream()
        )


def backward(g: Tensor, mask: Tensor, dx: Tensor) -> None:
    """Write ``dx = bit ? g : 0``."""
    from thawkit import _C

    with torch.cuda.device(g.device):
        _C.packed_relu_backward_cuda(
            pointer(g), pointer(dx), pointer(mask), g.numel(), 0.0, 0.0, DTYPES[g.dtype], 0, stream()
        )
