"""Zeros around an image, in one pass over memory each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from thawkit.errors import ThawkitError
from thawkit.ops._library import holds_numbers
from thawkit.ops.dispatch import unavailable
from thawkit.ops.frozen import cpu
from thawkit.ops.frozen.overrides import overridable


@overridable
def zero_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Surround ``x`` with zeros, as :func:`torch.nn.functional.pad` does.

    That fills the whole result before it copies ``x`` there. Here zeros are written where they stay, and the
    gradient is a view of that of the result. Not for transforms of :mod:`torch.func`.

    Args:
        x: ``(N, C, H, W)``.
        left, right, top, bottom: how many zeros on each side, at least 0.

    Returns:
        ``(N, C, top + H + bottom, left + W + right)``, of the dtype and memory order of ``x``.

    Raises:
        ThawkitError: ``x`` has other than four dimensions, or a side is negative.
    """
    if x.dim() != 4:
        raise ThawkitError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if min(left, right, top, bottom) < 0:
        raise ThawkitError(f"padding must be at least 0, got {(left, right, top, bottom)}")
    if (left, right, top, bottom) == (0, 0, 0, 0):
        return x.clone()
    return _ZeroPad.apply(x, left, right, top, bottom)


class _ZeroPad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
        n, channels, height, width = x.shape
        y = torch.empty(
            (n, channels, top + height + bottom, left + width + right),
            dtype=x.dtype,
            device=x.device,
            memory_format=suggest_memory_format(x),
        )
        if y.device.type == "cpu" and holds_numbers(y) and not unavailable("cpu"):
            cpu.prefer_huge_pages(y)
        ctx.inner = slice(top, top + height), slice(left, left + width)
        rows, columns = ctx.inner
        y[..., :top, :].zero_()
        y[..., top + height :, :].zero_()
        y[..., rows, :left].zero_()
        y[..., rows, left + width :].zero_()
        y[..., rows, columns].copy_(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = ctx.inner
        return grad[..., rows, columns], None, None, None, None
