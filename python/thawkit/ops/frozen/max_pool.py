"""Max-pooling that saves a few bits an output: where in its window the maximum was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen.masks import KERNELS, kernels

_STOCK: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_LONGEST_WINDOW = 256

Sizes = int | Sequence[int]


def packed_max_pool(
    x: Tensor,
    dims: int,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``F.max_pool1d``, ``2d`` or ``3d``, saving 2, 4 or 8 bits an output (windows of 4, 16 or 256 elements).

    Torch saves the input and an int64 index an output. Values, memory format and gradients are torch's bit
    for bit, with its choice among equal maxima and NaN.

    Args:
        x: ``(N, C, *sizes)`` or ``(C, *sizes)``; float32, bfloat16 or float16 by kernel. Float64, and windows
            of more than 256 elements, go by torch's own operator.
        dims: the number of ``sizes``: 1, 2 or 3.
        kernel_size: of the window, a number or one for each size.
        stride: from window to window; None: the kernel size.
        padding: elements of -inf on each side, at most half the kernel size.
        dilation: distance of a window's elements.
        ceil_mode: whether a window may begin whose end is beyond the padded input.

    Returns:
        ``(N, C, *out)`` or ``(C, *out)``, in the memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating, or ``dims`` is not 1, 2 or 3.
        RuntimeError: from torch, where the geometry is not possible.
    """
    checks.floating("x", x)
    if dims not in _STOCK:
        raise ThawkitError(f"dims must be 1, 2 or 3, got {dims!r}")
    if x.requires_grad and torch.is_grad_enabled() and choose("packed_max_pool", KERNELS, x) != "reference":
        windows = _Windows.of(x, dims, kernel_size, stride, padding, dilation, ceil_mode)
        if windows is not None:
            batched = x if x.dim() == dims + 2 else x.unsqueeze(0)
            if dims == 1:
                batched = batched.unsqueeze(-2)
            y = _MaxPool.apply(batched, windows)
            if dims == 1:
                y = y.squeeze(-2)
            return y if x.dim() == dims + 2 else y.squeeze(0)
    return _STOCK[dims](x, kernel_size, stride, padding, dilation, ceil_mode)


class _Windows(NamedTuple):
    """Where the windows are: one number each for the two or three sizes."""

    out: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    @classmethod
    def of(
        cls,
        x: Tensor,
        dims: int,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Sizes,
        dilation: Sizes,
        ceil_mode: bool,
    ) -> _Windows | None:
        """Work out the windows; None where the kernel does not know them, or torch has an error to raise."""
        given = kernel_size, kernel_size if stride is None or stride == () else stride, padding, dilation
        lists = [numbers for numbers in (_each(value, dims) for value in given) if numbers is not None]
        if x.numel() == 0 or x.dim() not in (dims + 1, dims + 2) or len(lists) < len(given):
            return None
        out = []
        for size, k, s, p, d in zip(x.shape[-dims:], *lists, strict=True):
            if min(k, s, d) < 1 or p < 0 or 2 * p > k or d > size:
                return None
            room = size + 2 * p - d * (k - 1) - 1
            windows = (room + (s - 1 if ceil_mode else 0)) // s + 1
            if ceil_mode and (windows - 1) * s >= size + p:
                windows -= 1  # the last one must begin in the input or before it
            if windows < 1:
                return None
            out.append(windows)
        if math.prod(lists[0]) > _LONGEST_WINDOW:
            return None
        if dims == 1:  # a row of two sizes
            out, lists = (
                [1, *out],
                [[one, *numbers] for one, numbers in zip((1, 1, 0, 1), lists, strict=True)],
            )
        return cls(out, *lists)


def _each(value: Sizes, dims: int) -> list[int] | None:
    if isinstance(value, int):
        return [value] * dims
    numbers = list(value)
    if not all(isinstance(number, int) for number in numbers):
        return None
    return numbers * dims if len(numbers) == 1 else numbers if len(numbers) == dims else None


def _format(x: Tensor) -> torch.memory_format:
    """The memory format of dense ``x``: contiguous or channels-last."""
    last = _CHANNELS_LAST[x.dim()]
    only_last = x.is_contiguous(memory_format=last) and not x.is_contiguous()
    return last if only_last else torch.contiguous_format


def _laid_out(x: Tensor) -> Tensor:
    """Bring ``x`` into the memory format that torch would choose."""
    dense = x if x.is_contiguous() else torch.empty_like(x).copy_(x) if _has_gaps(x) else x
    return dense.contiguous(memory_format=_format(dense))


def _has_gaps(x: Tensor) -> bool:
    return torch.empty_like(x, device="meta").stride() != x.stride()


def _bits(kernel: list[int]) -> int:
    window = math.prod(kernel)
    return 2 if window <= 4 else 4 if window <= 16 else 8


def _groups(shape: Sequence[int], channels_last: bool) -> tuple[int, int]:
    """How many groups of codes begin with a new byte, and the codes in each: csrc/cpu/kernels.h."""
    n, channels, *sizes = shape
    if channels_last:
        return n * math.prod(sizes[:-1]), sizes[-1] * channels
    return n * channels, math.prod(sizes)


def _geometry(x_shape: Sequence[int], windows: _Windows, channels_last: bool) -> tuple:
    """What the kernels are told: all in three sizes."""
    n, channels, *size = x_shape
    ones = [1] * (3 - len(size))
    out, kernel, stride, padding, dilation = windows
    fields = (
        ones + size,
        ones + out,
        ones + kernel,
        ones + stride,
        [0] * len(ones) + padding,
        ones + dilation,
    )
    return n, channels, *fields, channels_last, _bits(kernel)


def _outputs(x: Tensor, windows: _Windows) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:2], *windows.out
    y = (
        x.new_empty(shape).to(memory_format=_format(x))
        if x.is_meta
        else torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
    )
    groups, group = _groups(shape, _format(x) != torch.contiguous_format)
    bits = _bits(windows.kernel)
    return y, x.new_empty(groups * ((group * bits + 7) // 8), dtype=torch.uint8)


def _forward(x: Tensor, *windows: list[int]) -> tuple[Tensor, Tensor]:
    y, codes = _outputs(x, _Windows(*windows))
    geometry = _geometry(x.shape, _Windows(*windows), _format(x) != torch.contiguous_format)
    kernels(x).max_pool(x, y, codes, geometry)
    return y, codes


def _empty_input(g: Tensor, size: list[int], channels_last: bool) -> Tensor:
    shape = *g.shape[:2], *size
    memory_format = _CHANNELS_LAST[g.dim()] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)


def _backward(g: Tensor, codes: Tensor, size: list[int], channels_last: bool, *windows: list[int]) -> Tensor:
    dx = _empty_input(g, size, channels_last)
    geometry = _geometry(dx.shape, _Windows(*windows), channels_last)
    kernels(g).max_pool_backward(g, dx, codes, geometry)
    return dx


_WINDOWS = "int[] out, int[] kernel, int[] stride, int[] padding, int[] dilation"
_forward_op = define(
    f"packed_max_pool(Tensor x, {_WINDOWS}) -> (Tensor, Tensor)",
    _forward,
    lambda x, *windows: _outputs(x, _Windows(*windows)),
)
_backward_op = define(
    f"packed_max_pool_backward(Tensor g, Tensor codes, int[] size, bool channels_last, {_WINDOWS}) -> Tensor",
    _backward,
    lambda g, codes, size, channels_last, *windows: _empty_input(g, size, channels_last),
)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: _Windows) -> Tensor:
        x = _laid_out(x)
        y, codes = _forward_op(x, *windows)
        ctx.save_for_backward(codes)
        ctx.rest = list(x.shape[2:]), _format(x) != torch.contiguous_format, windows
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        return _MaxPoolGradient.apply(g, codes, *ctx.rest), None


class _MaxPoolGradient(torch.autograd.Function):
    """Linear in ``g``; its gradient takes the elements that the codes name."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, codes: Tensor, size: list[int], channels_last: bool, windows: _Windows
    ) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.rest = tuple(g.shape), size, channels_last, windows
        memory_format = _CHANNELS_LAST[g.dim()] if channels_last else torch.contiguous_format
        return _backward_op(g.contiguous(memory_format=memory_format), codes, size, channels_last, *windows)

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        shape, *rest = ctx.rest
        index = _indices(codes, shape, *rest).flatten(2)
        return of_dx.flatten(2).gather(2, index).view(shape), None, None, None, None


def _indices(
    codes: Tensor, shape: tuple[int, ...], size: list[int], channels_last: bool, windows: _Windows
) -> Tensor:
    """Torch's ``return_indices``: of each output, the place of its maximum in the flattened sizes."""
    n, channels, *out = shape
    bits = _bits(windows.kernel)
    groups, group = _groups(shape, channels_last)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    numbers = (codes.view(groups, -1, 1) >> shifts & (2**bits - 1)).flatten(1)[:, :group].long()
    numbers = numbers.reshape(n, *out, channels).movedim(-1, 1) if channels_last else numbers.reshape(shape)
    index, width = torch.zeros_like(numbers), 1
    for d in reversed(range(len(size))):
        starts = torch.arange(out[d], device=codes.device) * windows.stride[d] - windows.padding[d]
        starts = starts.view([-1 if i == d else 1 for i in range(len(size))])
        index += (starts + numbers % windows.kernel[d] * windows.dilation[d]) * width
        numbers, width = numbers // windows.kernel[d], width * size[d]
    return index
