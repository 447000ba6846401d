"""Activations for frozen networks, which save one bit an element instead of the input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen import reference
from thawkit.ops.frozen.masks import (
    KERNELS,
    MaskedGradient,
    dense_like,
    empty_mask,
    is_dense,
    kernels,
    laid_out,
    masked_sums_op,
    pack_bits,
)
from thawkit.ops.frozen.overrides import overridable


@overridable
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
    return _packed(
        "relu", x, lower, upper, lambda: reference.packed_relu(x, lower, upper, inplace), inplace=inplace
    )


def _clamp_excludes_bounds() -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
        return torch.autograd.grad(x.clamp(0.0, 1.0).sum(), x)[0].tolist() == [0.0, 1.0, 0.0]


# Older versions of torch.clamp pass the gradient at a bound. The kernel does as the newer ones.
_CLAMPS = _clamp_excludes_bounds()


@overridable
def packed_clamp(
    x: Tensor, lower: float | None = None, upper: float | None = None, *, inplace: bool = False
) -> Tensor:
    """``torch.clamp``, saving one bit an element.

    It differs from :func:`packed_relu` at NaN, whose gradient is 0 here, and in that a bound may be missing.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference. So do bounds that are
            not finite, and versions of torch whose clamp passes the gradient at a bound.
        lower: smallest output, a number; None: there is none.
        upper: largest output, likewise; everything comes to it where it is below ``lower``.
        inplace: overwrite ``x`` and return it, see :func:`packed_relu`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
        RuntimeError: neither bound is given.
    """
    checks.floating("x", x)
    stock = lambda: reference.packed_clamp(x, lower, upper, inplace)
    bounds = [bound for bound in (lower, upper) if bound is not None]
    if not bounds or not all(map(math.isfinite, bounds)) or not _CLAMPS:
        return stock()
    a, b = -math.inf if lower is None else lower, math.inf if upper is None else upper
    return _packed("clamp", x, a, b, stock, inplace=inplace)


@overridable
def packed_threshold(x: Tensor, threshold: float, value: float, *, inplace: bool = False) -> Tensor:
    """``F.threshold``, ``x <= threshold ? value : x``, saving one bit an element.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference.
        threshold: what is not above it is replaced, and gives no gradient.
        value: by what.
        inplace: overwrite ``x`` and return it, see :func:`packed_relu`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
    """
    checks.floating("x", x)
    return _packed(
        "threshold", x, threshold, value, lambda: F.threshold(x, threshold, value, inplace), inplace=inplace
    )


@overridable
def packed_leaky_relu(x: Tensor, negative_slope: float = 0.01, *, inplace: bool = False) -> Tensor:
    """``F.leaky_relu``, saving one bit an element, whatever the slope and also in place.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference.
        negative_slope: factor of what is not above 0.
        inplace: overwrite ``x`` and return it, see :func:`packed_relu`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
    """
    checks.floating("x", x)
    stock = lambda: F.leaky_relu(x, negative_slope, inplace)
    return _packed(
        "leaky", x, negative_slope, 0.0, stock, inplace=inplace, masked=("two", 1.0, negative_slope)
    )


@overridable
def packed_hardsigmoid(x: Tensor, *, inplace: bool = False) -> Tensor:
    """``F.hardsigmoid``, ``clamp(x + 3, 0, 6) / 6``, saving one bit an element.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference.
        inplace: overwrite ``x`` and return it, see :func:`packed_relu`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
    """
    checks.floating("x", x)
    stock = lambda: F.hardsigmoid(x, inplace)
    return _packed("hardsigmoid", x, 0.0, 0.0, stock, inplace=inplace, masked=("part", 1 / 6, 0.0))


@overridable
def packed_abs(x: Tensor, *, inplace: bool = False) -> Tensor:
    """``torch.abs``, saving two bits an element: its gradient is 0 at 0.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by the reference.
        inplace: overwrite ``x`` and return it, see :func:`packed_relu`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
    """
    checks.floating("x", x)
    stock = lambda: reference.packed_abs(x, inplace)
    return _packed("abs", x, 0.0, 0.0, stock, inplace=inplace, masked=("sign", 1.0, 0.0))


@overridable
def packed_prelu(x: Tensor, weight: Tensor) -> Tensor:
    """``F.prelu`` with a weight that needs no gradient, saving one bit an element.

    Args:
        x: ``(N, C, *sizes)``, or any shape where there is one weight; float32, bfloat16 or float16 by kernel,
            float64 by the reference, which also takes a weight that needs a gradient.
        weight: ``(C,)`` or ``(1,)``, of the dtype of ``x``.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` or ``weight`` is not floating.
    """
    checks.floating("x", x)
    checks.floating("weight", weight)
    kernel = not weight.requires_grad and _saves(x) and choose("packed_relu", KERNELS, x) != "reference"
    return _PRelu.apply(x, weight) if kernel else F.prelu(x, weight)


def _saves(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _packed(
    kind: str,
    x: Tensor,
    a: float,
    b: float,
    stock: Callable[[], Tensor],
    *,
    inplace: bool,
    masked: tuple[str, float, float] = ("pass", 1.0, 0.0),
) -> Tensor:
    """Run the kernel of a kind, or ``stock`` where nothing is saved or the kernel cannot run."""
    backend = choose("packed_relu", KERNELS, x)
    if backend == "reference" or not _saves(x) or (inplace and not _may_overwrite(x)):
        return stock()
    return _Packed.apply(x, kind, a, b, inplace, masked)


def _may_overwrite(x: Tensor) -> bool:
    """Whether a Function may write to ``x``: to no leaf and no view, and the kernel only to dense memory."""
    return not torch.compiler.is_compiling() and not x.is_leaf and not x._is_view() and is_dense(x)


def _write(x: Tensor, y: Tensor, kind: str, a: float, b: float) -> Tensor:
    mask = empty_mask(x, 2 if kind == "abs" else 1)
    kernels(x).pack(kind, x, y, mask, a, b)
    return mask


def _forward(x: Tensor, kind: str, a: float, b: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    return y, _write(dense_like(x, y), y, kind, a, b)


_forward_op = define(
    "packed_activation(Tensor x, str kind, float a, float b) -> (Tensor, Tensor)",
    _forward,
    lambda x, kind, a, b: (torch.empty_like(x), empty_mask(x, 2 if kind == "abs" else 1)),
)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kind: str, a: float, b: float, inplace: bool, masked: tuple[str, float, float]
    ) -> Tensor:
        if inplace:  # what else reads x afterwards sees the result, with its gradient
            y, mask = x, _write(x, x, kind, a, b)
            ctx.mark_dirty(x)
        else:
            y, mask = _forward_op(x, kind, a, b)
        ctx.save_for_backward(mask)
        ctx.rest = y.stride(), *masked  # the order in which the bits lie, and what they mean
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return MaskedGradient.apply(g, mask, *ctx.rest), None, None, None, None, None


class _PRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        y = F.prelu(x, weight)
        ctx.save_for_backward(pack_bits(dense_like(x, y), "leaky", 0.0, 0.0), weight)
        ctx.strides = y.stride()
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, weight = ctx.saved_tensors
        return _PReluGradient.apply(g, mask, weight, ctx.strides), None


class _PReluGradient(torch.autograd.Function):
    """``bit ? g : weight g``, linear in ``g``, so that its gradient is the same operation again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, mask: Tensor, weight: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(mask, weight)
        ctx.strides = strides
        rows = g if g.dim() > 1 else g.reshape(-1, 1)  # no dimension of channels: there is one
        strides = strides if g.dim() > 1 else rows.stride()
        factors = weight.detach().float().expand(rows.shape[1]).contiguous()
        dx = masked_sums_op(laid_out(rows, strides), mask, 1, factors, True, False)[0]
        return dx.reshape(g.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, weight = ctx.saved_tensors
        return _PReluGradient.apply(g, mask, weight, ctx.strides), None, None, None
