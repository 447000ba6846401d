"""The CUDA kernels of what frozen networks keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, pointer, stream, takes_only
from thawkit.ops.frozen.kinds import MASKED, PACKED

objection = takes_only("cuda")


def _launch(name: str, x: Tensor, *arguments: Any) -> None:
    from thawkit import _C

    with torch.cuda.device(x.device):
        getattr(_C, name)(*arguments, DTYPES.get(x.dtype, 0), 0, stream())


def pack(kind: str, x: Tensor, y: Tensor | None, mask: Tensor, a: float, b: float) -> None:
    """Write y, where it is wanted, and the bits; all dense in the order of x."""
    _launch("pack_cuda", x, PACKED[kind], pointer(x), pointer(y), pointer(mask), x.numel(), a, b)


def masked(kind: str, g: Tensor, mask: Tensor, dx: Tensor, yes: float, no: float) -> None:
    """Write the gradient that the bits give; all dense in one order."""
    _launch("masked_cuda", g, MASKED[kind], pointer(g), pointer(mask), pointer(dx), g.numel(), yes, no)


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
    memory = *(pointer(t) for t in (g, mask, dx)), *layout
    _launch("channel_sum_cuda", g, MASKED[kind], *memory, yes, no, pointer(factors), pointer(sums), 0)


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
    memory = *(pointer(t) for t in (x, other, y, mask)), 0, 0, 0, 0, *layout
    _launch("channel_affine_cuda", x, *memory, pointer(scale), pointer(shift), lower, upper, 0)


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
    memory = pointer(x), 0, 0, *(pointer(t) for t in (mask, g, dx, dother, sums)), *layout
    _launch("channel_affine_backward_cuda", g, *memory, pointer(scale), pointer(mean), 0.0, 0.0, 0)


def max_pool(x: Tensor, y: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the maxima and where they come from."""
    _launch("max_pool_cuda", x, pointer(x), pointer(y), pointer(codes), *geometry, 0)


def max_pool_backward(g: Tensor, dx: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the gradient of the input."""
    _launch("max_pool_backward_cuda", g, pointer(g), pointer(dx), pointer(codes), *geometry, 0)


def quantize(x: Tensor, codes: Tensor, numbers: Tensor, bits: int) -> None:
    """Write the codes of dense ``x`` and each group's numbers."""
    _launch("quantize_cuda", x, pointer(x), pointer(codes), pointer(numbers), x.numel(), bits)


def dequantize(codes: Tensor, numbers: Tensor, g: Tensor | None, y: Tensor, bits: int) -> None:
    """Write the values, times ``g`` if given; all dense in one order."""
    memory = pointer(codes), pointer(numbers), pointer(g), pointer(y)
    _launch("dequantize_cuda", y, *memory, y.numel(), bits)
