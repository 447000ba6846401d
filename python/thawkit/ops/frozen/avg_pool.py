"""Average pooling that saves nothing: its gradient needs the sizes of the input alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import in_transform
from thawkit.ops.dispatch import forced_backend

_STOCK: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_STOCK_ADAPTIVE: dict[int, Any] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}

Sizes = int | Sequence[int]


def avg_pool(
    x: Tensor,
    dims: int,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """``F.avg_pool1d``, ``2d`` or ``3d``, saving nothing for the backward pass. Torch saves the input.

    Args:
        x: ``(N, C, *sizes)`` or ``(C, *sizes)``, of any floating dtype.
        dims: the number of ``sizes``: 1, 2 or 3.
        kernel_size: of the window, a number or one for each size.
        stride: from window to window; None: the kernel size.
        padding: zeros on each side.
        ceil_mode: whether a window may begin whose end is beyond the padded input.
        count_include_pad: whether the zeros count in the mean.
        divisor_override: what sums are divided by, in place of the window's size; not for ``dims`` 1.

    Returns:
        ``(N, C, *out)`` or ``(C, *out)``.

    Raises:
        ThawkitError: ``x`` is not floating, or ``dims`` is not 1, 2 or 3.
    """
    _check(x, dims)
    if not _acts(x):
        options = () if dims == 1 else (divisor_override,)
        return _STOCK[dims](x, kernel_size, stride, padding, ceil_mode, count_include_pad, *options)
    stride = kernel_size if stride is None or stride == () else stride
    if dims == 1:
        kernel_size, stride = [1, *_one(kernel_size)], [1, *_one(stride)]
        y = avg_pool(
            x.unsqueeze(-2), 2, kernel_size, stride, [0, *_one(padding)], ceil_mode, count_include_pad
        )
        return y.squeeze(-2)
    return _AvgPool.apply(
        x, dims, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool(x: Tensor, dims: int, output_size: int | Sequence[int | None] | None) -> Tensor:
    """``F.adaptive_avg_pool1d``, ``2d`` or ``3d``, saving nothing for the backward pass.

    Args:
        x: ``(N, C, *sizes)`` or ``(C, *sizes)``, of any floating dtype.
        dims: the number of ``sizes``: 1, 2 or 3.
        output_size: a number or one for each size; None: that of the input.

    Returns:
        ``(N, C, *output_size)`` or ``(C, *output_size)``.

    Raises:
        ThawkitError: ``x`` is not floating, or ``dims`` is not 1, 2 or 3.
    """
    _check(x, dims)
    sizes = [output_size] * dims if output_size is None or isinstance(output_size, int) else list(output_size)
    # to size 1 torch takes the mean, which saves nothing
    if not _acts(x) or all(size == 1 for size in sizes):
        return _STOCK_ADAPTIVE[dims](x, output_size)
    if dims == 1:
        return adaptive_avg_pool(x.unsqueeze(-2), 2, [1, *sizes]).squeeze(-2)
    return _AdaptiveAvgPool.apply(x, dims, sizes)


def _check(x: Tensor, dims: int) -> None:
    checks.floating("x", x)
    if dims not in _STOCK:
        raise ThawkitError(f"dims must be 1, 2 or 3, got {dims!r}")


def _acts(x: Tensor) -> bool:
    """Whether torch would save ``x``, and a Function may act in its place."""
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not in_transform()
        and forced_backend() != "reference"
    )


def _one(value: Sizes) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


_OF_OUT = {2: "avg_pool2d_backward", 3: "avg_pool3d_backward"}
_OF_ADAPTIVE = {2: "_adaptive_avg_pool2d_backward", 3: "_adaptive_avg_pool3d_backward"}


def _layout(x: Tensor) -> tuple[torch.Size, torch.memory_format]:
    """The shape and the memory format that torch gives the gradient of ``x``: in 3-d always contiguous."""
    last = x.dim() == 4 and not x.is_contiguous()
    if last and torch.empty_like(x, device="meta").is_contiguous(memory_format=torch.channels_last):
        return x.shape, torch.channels_last
    return x.shape, torch.contiguous_format


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: int, *options: Any) -> Tensor:
        ctx.layout, ctx.dims, ctx.options = _layout(x), dims, options
        return _STOCK[dims](x, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _AvgPoolGradient.apply(g, ctx.layout, ctx.dims, ctx.options), *[None] * 7


class _AvgPoolGradient(torch.autograd.Function):
    """Linear in ``g``: its gradient is the pooling itself."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, layout: tuple[torch.Size, torch.memory_format], dims: int, options: tuple
    ) -> Tensor:
        ctx.dims, ctx.options = dims, options
        shape, memory_format = layout
        dx = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)
        kernel_size, stride, padding, *rest = options
        lists = [[n] * dims if isinstance(n, int) else list(n) for n in (kernel_size, stride, padding)]
        # torch reads no more of the input than its sizes and memory format, which are those of the gradient
        backward = getattr(torch.ops.aten, _OF_OUT[dims]).grad_input
        return backward(g, dx, *lists, *rest, grad_input=dx)

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor) -> tuple[Tensor | None, ...]:
        return avg_pool(of_dx, ctx.dims, *ctx.options), None, None, None


class _AdaptiveAvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: int, sizes: list[int | None]) -> Tensor:
        ctx.layout, ctx.dims, ctx.sizes = _layout(x), dims, sizes
        return _STOCK_ADAPTIVE[dims](x, sizes)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _AdaptiveAvgPoolGradient.apply(g, ctx.layout, ctx.dims, ctx.sizes), None, None


class _AdaptiveAvgPoolGradient(torch.autograd.Function):
    """Linear in ``g``: its gradient is the pooling itself."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        layout: tuple[torch.Size, torch.memory_format],
        dims: int,
        sizes: list[int | None],
    ) -> Tensor:
        ctx.dims, ctx.sizes = dims, sizes
        shape, memory_format = layout
        if memory_format == torch.contiguous_format:
            shape_only = g.new_empty(1).expand(shape)  # the input's values do not enter its gradient
        else:
            shape_only = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)
        return getattr(torch.ops.aten, _OF_ADAPTIVE[dims])(g, shape_only)

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor) -> tuple[Tensor | None, ...]:
        return adaptive_avg_pool(of_dx, ctx.dims, ctx.sizes), None, None, None
