"""The Triton kernels of what frozen networks keep."""

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


def channel_sum(
    kind: str,
    g: Tensor,
    mask: Tensor | None,
    dx: Tensor | None,
    layout: tuple[int, int, int],
    yes: float,
    no: float,
    factors: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Write the gradient that the bits give and its sums by channel, each where it is wanted."""
    from thawkit.kernels import channels as kernels

    if g.numel() == 0:
        if sums is not None:
            sums.zero_()
        return
    parts = None
    if sums is not None:
        parts = sums.new_empty(kernels.sum_parts(layout), layout[1])
    kernels.channel_sum(kind, g, mask, dx, layout, yes, no, factors, parts)
    if sums is not None and parts is not None:
        torch.sum(parts, 0, out=sums)


def channel_affine(
    x: Tensor,
    other: Tensor | None,
    y: Tensor,
    mask: Tensor | None,
    layout: tuple[int, int, int],
    scale: Tensor,
    shift: Tensor,
    lower: float,
    upper: float,
) -> None:
    """Write y and, where there is a mask, its bits; all dense in the order of x."""
    from thawkit.kernels import channels as kernels

    kernels.channel_affine(x, other, y, mask, layout, scale, shift, lower, upper)


def channel_affine_backward(
    g: Tensor,
    x: Tensor | None,
    mask: Tensor | None,
    dx: Tensor | None,
    dother: Tensor | None,
    sums: Tensor,
    layout: tuple[int, int, int],
    scale: Tensor,
    mean: Tensor,
) -> None:
    """Write the gradients that are wanted, and the sums, without x the first; all dense in one order."""
    from thawkit.kernels import channels as kernels

    if g.numel() == 0 or x is None:
        sums.zero_()
    if g.numel() == 0:
        return
    parts = sums.new_empty(1 if x is None else 2, kernels.sum_parts(layout), layout[1])
    kernels.channel_affine_backward(g, x, mask, dx, dother, parts, layout, scale, mean)
    torch.sum(parts, 1, out=sums[: len(parts)])


def max_pool(x: Tensor, y: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the maxima and where they come from."""
    from thawkit.kernels import max_pool as kernels

    kernels.max_pool(x, y, codes, geometry)


def max_pool_backward(g: Tensor, dx: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the gradient of the input."""
    from thawkit.kernels import max_pool as kernels

    kernels.max_pool_backward(g, dx, codes, geometry)


def quantize(x: Tensor, codes: Tensor, numbers: Tensor, bits: int) -> None:
    """Write the codes of dense ``x`` and each group's numbers."""
    from thawkit.kernels import quantize as kernels

    kernels.quantize(x, codes, numbers, bits)


def dequantize(codes: Tensor, numbers: Tensor, g: Tensor | None, y: Tensor, bits: int) -> None:
    """Write the values, times ``g`` if given; all dense in one order."""
    from thawkit.kernels import quantize as kernels

    kernels.dequantize(codes, numbers, g, y, bits)
