"""csrc/cuda/max_pool.cu: max-pooling with codes of a few bits, and its backward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.ops.frozen import cuda
from thawkit.ops.frozen.max_pool import _bits, _empty_input, _geometry, _indices, _outputs, _Windows

from .registry import DTYPES, UNIT, Run, check, close, elements_of, last_stride, numbers, same, virtual

STOCK = {2: F.max_pool2d, 3: F.max_pool3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

# shape, then kernel_size, stride, padding, dilation, ceil_mode
CASES = [
    ((2, 3, 12, 10), 2, None, 0, 1, False),
    ((2, 3, 13, 17), 3, 2, 1, 1, False),
    ((2, 5, 7, 9), (2, 3), (1, 2), (1, 1), (2, 1), True),
    ((2, 8, 7, 9), 3, 1, 1, 1, False),
    ((1, 4, 20, 21), 5, 7, 0, 1, True),
    ((1, 3, 20, 21), 16, 3, 8, 1, False),
    ((2, 3, 6, 5), 1, 1, 0, 1, False),
    ((2, 3, 9, 9), 2, 2, 1, 3, True),
    ((1, 4, 5, 6, 9), (3, 2, 3), (2, 1, 2), 1, (1, 2, 1), True),
]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0]


def windows_of(x: Tensor, options: tuple) -> _Windows:
    windows = _Windows.of(x, x.dim() - 2, *options)
    assert windows is not None
    return windows


def pooled(run: Run, x: Tensor, windows: _Windows, channels_last: bool) -> tuple[Tensor, Tensor]:
    with run():
        y, codes = _outputs(x, windows)
        cuda.max_pool(x, y, codes, _geometry(x.shape, windows, channels_last))
    return y, codes


@check("max_pool", case=CASES, channels_last=[False, True], values=["ties", "special", "-inf"], dtype=DTYPES)
def takes_what_torch_takes(
    run: Run, case: tuple, channels_last: bool, values: str, dtype: torch.dtype
) -> None:
    shape, *options = case
    dims = len(shape) - 2
    x = {
        "ties": torch.randn(shape).round().to(dtype),
        "special": numbers(*shape, dtype=dtype, special=SPECIAL),
        "-inf": torch.full(shape, -math.inf, dtype=dtype),
    }[values]
    x = x.contiguous(memory_format=LAST[dims] if channels_last else torch.contiguous_format)
    windows = windows_of(x, options)
    y, codes = pooled(run, x, windows, channels_last)
    # of contiguous memory: of channels-last volumes of -inf torch names another element
    expected, index = STOCK[dims](x.contiguous(), *options, return_indices=True)
    same(y, expected)
    same(_indices(codes, y.shape, list(x.shape[2:]), channels_last, windows), index)


@check("max_pool_backward", case=CASES, channels_last=[False, True], dtype=DTYPES)
def hands_gradients_back(run: Run, case: tuple, channels_last: bool, dtype: torch.dtype) -> None:
    shape, *options = case
    dims = len(shape) - 2
    x = torch.randn(shape).round().to(dtype)
    x = x.contiguous(memory_format=LAST[dims] if channels_last else torch.contiguous_format)
    windows = windows_of(x, options)
    y, codes = pooled(run, x, windows, channels_last)
    g = torch.randn(y.shape).to(dtype)
    g = g.contiguous(memory_format=LAST[dims] if channels_last else torch.contiguous_format)
    with run(seed=1):
        dx = _empty_input(g, list(x.shape[2:]), channels_last)
        cuda.max_pool_backward(g, dx, codes, _geometry(x.shape, windows, channels_last))
    index = _indices(codes, y.shape, list(x.shape[2:]), channels_last, windows).flatten(2)
    truth = torch.zeros(x.shape, dtype=torch.float64).flatten(2)
    truth = truth.scatter_add(2, index, g.double().flatten(2)).view(x.shape)
    close(dx, truth, UNIT[dtype], 1e-6)


def far(channels_last: bool) -> tuple[Tensor, _Windows, int]:
    """Pairs of planes of two rows of four numbers, windows of 2 x 2, and the bytes of their codes."""
    pairs = 2**27 + 9
    windows = _Windows([1, 2], [2, 2], [2, 2], [0, 0], [1, 1])
    x = virtual(pairs * 16, torch.float32)
    assert _bits(windows.kernel) == 2
    return x, windows, pairs * (1 if channels_last else 2)


def far_shape(x: Tensor, channels_last: bool, *size: int) -> Tensor:
    """As (N, 2, h, w)."""
    if channels_last:
        return x.view(-1, *size, 2).movedim(-1, 1)
    return x.view(-1, 2, *size)


@check("max_pool", channels_last=[False, True])
def takes_past_two_to_the_31(run: Run, channels_last: bool) -> None:
    x, windows, count = far(channels_last)
    x[-300:] = torch.randn(300)
    y, codes = virtual(x.numel() // 4, torch.float32), virtual(count, torch.uint8)
    planes, out = far_shape(x, channels_last, 2, 4), far_shape(y, channels_last, 1, 2)
    with run(blocks=[(count - 1) // 256]):
        cuda.max_pool(x, y, codes, _geometry(planes.shape, windows, channels_last))
    expected, index = F.max_pool2d(planes[-4:], 2, return_indices=True)
    same(out[-4:], expected)
    got = _indices(codes[-4 * count // len(planes) :], tuple(expected.shape), [2, 4], channels_last, windows)
    same(got, index)


@check("max_pool_backward", channels_last=[False, True])
def hands_back_past_two_to_the_31(run: Run, channels_last: bool) -> None:
    dx, windows, count = far(channels_last)
    g, codes = virtual(dx.numel() // 4, torch.float32), virtual(count, torch.uint8)
    g[-75:] = torch.randn(75)
    codes[-40:] = torch.randint(256, (40,), dtype=torch.uint8)
    planes, out = far_shape(dx, channels_last, 2, 4), far_shape(g, channels_last, 1, 2)
    if not channels_last:
        codes[-40:] &= 15  # of the four codes that a byte holds a plane has two
    block = last_stride(dx.numel())[1]
    with run(blocks=[block]):
        cuda.max_pool_backward(g, dx, codes, _geometry(planes.shape, windows, channels_last))
    index = _indices(codes[-4 * count // len(planes) :], (4, 2, 1, 2), [2, 4], channels_last, windows)
    truth = torch.zeros(4, 2, 8).scatter_add(2, index.flatten(2), out[-4:].float().flatten(2))
    last = elements_of(block, dx.numel())
    last = last[last >= dx.numel() - 64]
    at = torch.zeros(64, dtype=torch.bool)
    at[last - (dx.numel() - 64)] = True
    same(
        planes[-4:].reshape(4, 2, 8)[far_mask(at, channels_last)],
        truth[far_mask(at, channels_last)],
    )
    assert len(last) >= 32


def far_mask(at: Tensor, channels_last: bool) -> Tensor:
    return far_shape(at, channels_last, 2, 4).reshape(4, 2, 8)
