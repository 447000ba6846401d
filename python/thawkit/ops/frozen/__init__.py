"""Activations for frozen networks, which save one bit an element instead of the input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen import cpu, cuda, reference

__all__ = ["packed_relu"]

_KERNELS = {"cpu": cpu.objection, "cuda": cuda.objection}
BACKENDS = {"packed_relu": tuple(_KERNELS)}


def packed_relu(x: Tensor, lower: float = 0.0, upper: float = math.inf, *, inplace: bool = False) -> Tensor:
    """``clamp(x, lower, upper)``, saving one bit an element for the backward pass.

    Values and gradients equal ``torch.relu`` (the defaults), ``relu6`` (upper 6) and ``hardtanh``: the
    gradient is 0 at and beyond a bound. At NaN it passes where there is no upper bound, as in ``torch.relu``.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference.
        lower: smallest output.
        upper: largest output.
        inplace: overwrite ``x`` and return it. The reference does so, saving more, where ``x`` is a view and
            under ``torch.compile``.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating, or ``lower`` is not below ``upper``.
    """
    checks.floating("x", x)
    if not lower < upper:
        raise ThawkitError(f"lower must be below upper, got {lower} and {upper}")
    backend = choose("packed_relu", _KERNELS, x)
    saves = x.requires_grad and torch.is_grad_enabled()
    if backend == "reference" or not saves or (inplace and not _may_overwrite(x)):
        return reference.packed_relu(x, lower, upper, inplace)
    return _PackedRelu.apply(x, lower, upper, inplace)


def _may_overwrite(x: Tensor) -> bool:
    """Whether a Function may write to ``x``: to no leaf and no view, and the kernel only to dense memory."""
    if torch.compiler.is_compiling() or x.is_leaf or x._is_view():
        return False
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` with the strides of ``like``, which is dense."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def _write(x: Tensor, y: Tensor, lower: float, upper: float) -> Tensor:
    mask = x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)
    (cpu if x.device.type == "cpu" else cuda).forward(x, y, mask, lower, upper)
    return mask


def _forward(x: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    return y, _write(_dense(x, y), y, lower, upper)


def _backward(g: Tensor, mask: Tensor) -> Tensor:
    dx = torch.empty_like(g)
    (cpu if g.device.type == "cpu" else cuda).backward(_dense(g, dx), mask, dx)
    return dx


_forward_op = define(
    "packed_relu(Tensor x, float lower, float upper) -> (Tensor, Tensor)",
    _forward,
    lambda x, lower, upper: (
        torch.empty_like(x),
        x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8),
    ),
)
_backward_op = define(
    "packed_relu_backward(Tensor g, Tensor mask) -> Tensor", _backward, lambda g, mask: torch.empty_like(g)
)


class _PackedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: float, upper: float, inplace: bool) -> Tensor:
        if inplace:  # what else reads x afterwards sees it clamped, with the clamp's gradient
            y, mask = x, _write(x, x, lower, upper)
            ctx.mark_dirty(x)
        else:
            y, mask = _forward_op(x, lower, upper)
        ctx.save_for_backward(mask)
        ctx.strides = y.stride()  # the order in which the bits lie
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        return _Masked.apply(g, mask, ctx.strides), None, None, None


class _Masked(torch.autograd.Function):
    """``bit ? g : 0``, linear in ``g``, so that double backward is the same operation again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, mask: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.strides = strides
        if g.stride() != strides:
            g = torch.empty_strided(g.shape, strides, dtype=g.dtype, device=g.device).copy_(g)
        return _backward_op(g, mask)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _Masked.apply(g, mask, ctx.strides), None, None
