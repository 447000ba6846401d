"""The CPU kernels of what frozen networks keep."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import DTYPES, cpu_kernels, pointer, takes_only, threads
from thawkit.ops.frozen.kinds import MASKED, PACKED

objection = takes_only("cpu")


def prefer_huge_pages(fresh: Tensor) -> None:
    """Ask the system for huge pages under memory that nobody has written to yet."""
    cpu_kernels().prefer_huge_pages(pointer(fresh), fresh.nbytes)


def pack(kind: str, x: Tensor, y: Tensor | None, mask: Tensor, a: float, b: float) -> None:
    """Write y, where it is wanted, and the bits; all dense in the order of x."""
    cpu_kernels().pack(
        PACKED[kind],
        pointer(x),
        pointer(y),
        pointer(mask),
        x.numel(),
        a,
        b,
        DTYPES.get(x.dtype, 0),
        threads(),
    )


def masked(kind: str, g: Tensor, mask: Tensor, dx: Tensor, yes: float, no: float) -> None:
    """Write the gradient that the bits give; all dense in one order."""
    cpu_kernels().masked(
        MASKED[kind], pointer(g), pointer(mask), pointer(dx), g.numel(), yes, no, DTYPES[g.dtype], threads()
    )


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

    def arguments(workspace: Tensor | None) -> tuple:
        memory = *(pointer(t) for t in (g, mask, dx)), *layout
        rest = pointer(factors), pointer(sums), pointer(workspace), DTYPES[g.dtype], threads()
        return MASKED[kind], *memory, yes, no, *rest

    doubles = cpu_kernels().channel_sum_workspace(*arguments(None))
    workspace = torch.empty(doubles, dtype=torch.float64) if doubles else None
    cpu_kernels().channel_sum(*arguments(workspace))


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

    def arguments(workspace: Tensor | None) -> tuple:
        memory = *(pointer(t) for t in (x, other, y, mask)), 0, 0, 0, 0, *layout
        rest = lower, upper, pointer(workspace), DTYPES[x.dtype], threads()
        return *memory, pointer(scale), pointer(shift), *rest

    workspace = torch.empty(cpu_kernels().channel_affine_workspace(*arguments(None)))
    cpu_kernels().channel_affine(*arguments(workspace))


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

    def arguments(workspace: Tensor | None) -> tuple:
        memory = pointer(x), 0, 0, *(pointer(t) for t in (mask, g, dx, dother, sums)), *layout
        rest = 0.0, 0.0, pointer(workspace), DTYPES[g.dtype], threads()
        return *memory, pointer(scale), pointer(mean), *rest

    workspace = torch.empty(cpu_kernels().channel_affine_workspace(*arguments(None)))
    cpu_kernels().channel_affine_backward(*arguments(workspace))


def max_pool(x: Tensor, y: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the maxima and where they come from."""

    def arguments(workspace: Tensor | None) -> tuple:
        memory = pointer(x), pointer(y), pointer(codes)
        return *memory, *geometry, pointer(workspace), DTYPES[x.dtype], threads()

    workspace = torch.empty(cpu_kernels().max_pool_workspace(*arguments(None)), dtype=torch.uint8)
    cpu_kernels().max_pool(*arguments(workspace))


def max_pool_backward(g: Tensor, dx: Tensor, codes: Tensor, geometry: tuple) -> None:
    """Write the gradient of the input."""
    memory = pointer(g), pointer(dx), pointer(codes)
    cpu_kernels().max_pool_backward(*memory, *geometry, 0, DTYPES[g.dtype], threads())


def quantize(x: Tensor, codes: Tensor, numbers: Tensor, bits: int) -> None:
    """Write the codes of dense ``x`` and each group's numbers."""
    memory = pointer(x), pointer(codes), pointer(numbers)
    cpu_kernels().quantize(*memory, x.numel(), bits, DTYPES[x.dtype], threads())


def dequantize(codes: Tensor, numbers: Tensor, g: Tensor | None, y: Tensor, bits: int) -> None:
    """Write the values, times ``g`` if given; all dense in one order."""
    memory = pointer(codes), pointer(numbers), pointer(g), pointer(y)
    cpu_kernels().dequantize(*memory, y.numel(), bits, DTYPES[y.dtype], threads())
