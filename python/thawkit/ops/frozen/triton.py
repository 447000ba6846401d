"""The Triton kernels of what frozen networks keep: one bit an element."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import dtype_objection

objection = dtype_objection


def pack(kind: str, x: Tensor, y: Tensor | None, mask: Tensor, a: float, b: float) -> None:
    """Write y, where it is wanted, and the bits; all dense in the order of x."""
    from thawkit.kernels import frozen as kernels

    kernels.pack(kind, x.view(torch.uint8) if x.dtype == torch.bool else x, y, mask, a, b)


def masked(kind: str, g: Tensor, mask: Tensor, dx: Tensor, yes: float, no: float) -> None:
    """Write the gradient that the bits give; all dense in one order."""
    from thawkit.kernels import frozen as kernels

    kernels.masked(kind, g, mask, dx, yes, no)
