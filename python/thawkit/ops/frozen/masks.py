"""One bit an element: writing the bits, and the gradients and channel sums that they give."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose, forced_backend, unavailable
from thawkit.ops.frozen import cpu, cuda, reference, triton

KERNELS = {"cpu": cpu.objection, "cuda": cuda.objection, "triton": triton.objection}


def kernels(x: Tensor) -> ModuleType:
    """Return the module that calls the kernels which :func:`choose` names for ``x``."""
    forced = forced_backend()
    if forced == "triton" or (forced is None and x.device.type == "cuda" and not unavailable("triton")):
        return triton
    return cpu if x.device.type == "cpu" else cuda


def pack_positive(y: Tensor, lower: float = 0.0, upper: float = math.inf) -> Tensor:
    """Write the bits of a clamp from its result, as where another operator has fused the clamp.

    They are those of :func:`packed_relu`: ``lower < y < upper`` or, without an upper bound, not
    ``y <= lower``, so that the gradient passes at NaN. Bounds count as the dtype of ``y`` has them.

    Args:
        y: of any shape, dense (contiguous, channels-last, or another order without gaps).
        lower: smallest value of the clamp.
        upper: its largest value.

    Returns:
        ``ceil(y.numel() / 8)`` bytes: element i, in the order of memory, is bit ``i % 8`` of byte ``i // 8``.

    Raises:
        ThawkitError: ``y`` is not floating or has gaps, or ``lower`` is not below ``upper``.
    """
    _check_clamp(y, lower, upper)
    y = y.detach()
    if choose("packed_relu", KERNELS, y) == "reference":
        return reference.pack_positive(y, lower, upper)
    return pack_bits(y, "relu", lower, upper)


def pack_clamp_(y: Tensor, lower: float = 0.0, upper: float = math.inf) -> Tensor:
    """Clamp ``y`` in place, outside of autograd, and write the bits that :func:`packed_relu` would.

    Args:
        y: of any shape, dense.
        lower: smallest value.
        upper: largest value.

    Returns:
        The bits, as :func:`pack_positive`.

    Raises:
        ThawkitError: ``y`` is not floating or has gaps, or ``lower`` is not below ``upper``.
    """
    _check_clamp(y, lower, upper)
    y = y.detach()
    if choose("packed_relu", KERNELS, y) == "reference":
        bits = ~(y <= lower) if upper == math.inf else (y > lower) & (y < upper)
        y.clamp_(lower, upper)
        return reference.pack(bits)
    mask = empty_mask(y)
    kernels(y).pack("relu", y, y, mask, lower, upper)
    return mask


def _check_clamp(y: Tensor, lower: float, upper: float) -> None:
    checks.floating("y", y)
    if not lower < upper:
        raise ThawkitError(f"lower must be below upper, got {lower} and {upper}")
    if not is_dense(y):
        raise ThawkitError(
            f"y must lie in memory without gaps, got strides {y.stride()} for {tuple(y.shape)}"
        )


def packed_relu_backward(g: Tensor, mask: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``bit ? g : 0``, differentiable in ``g``: :func:`packed_relu_backward_sum` without the sums."""
    checks.floating("g", g)
    _check_mask(g, mask)
    if choose("packed_relu", KERNELS, g) == "reference":
        return torch.where(reference.unpack(mask, g.shape, strides), laid_out(g, strides), 0)
    return MaskedGradient.apply(g, mask, strides, "pass", 1.0, 0.0)


def _check_mask(g: Tensor, mask: Tensor) -> None:
    if (mask.dtype, mask.numel()) != (torch.uint8, (g.numel() + 7) // 8):
        raise ThawkitError(
            f"mask must hold {(g.numel() + 7) // 8} bytes, one bit an element of g, "
            f"got shape {tuple(mask.shape)} of {mask.dtype}"
        )


def packed_relu_backward_sum(
    g: Tensor, mask: Tensor | None, strides: tuple[int, ...], *, dim: int = 1
) -> tuple[Tensor, Tensor]:
    """``bit ? g : 0`` and, in the same pass, its sums over all dimensions but one.

    These are the gradients of the input and the bias of a layer with a fused ReLU. Differentiable in ``g``.

    Args:
        g: the upstream gradient, of the shape of the result y.
        mask: what :func:`pack_positive` or :func:`pack_clamp_` wrote; None where every bit
            counts as set.
        strides: those of y, in whose order the bits lie; y was dense.
        dim: the dimension of the channels.

    Returns:
        The gradient, of the dtype of ``g`` and in the order of these strides, and ``g.shape[dim]`` sums in
        float32 (float64 for float64). Without a mask the gradient is ``g`` itself, laid out so.

    Raises:
        ThawkitError: ``g`` is not floating, ``dim`` is none of its dimensions, or ``mask`` has not one bit
            an element.
    """
    checks.floating("g", g)
    if not -g.dim() <= dim < g.dim():
        raise ThawkitError(f"dim must be a dimension of g, which has shape {tuple(g.shape)}, got {dim}")
    if mask is not None:
        _check_mask(g, mask)
    if choose("masked_channel_sums", KERNELS, g) == "reference":
        g = laid_out(g, strides)
        bits = None if mask is None else reference.unpack(mask, g.shape, strides)
        return reference.masked_channel_sums(g, bits, dim)
    return _MaskedSums.apply(g, mask, strides, dim % g.dim())


def channel_sums(g: Tensor, dim: int = 1) -> Tensor:
    """Sum ``g`` over all dimensions but ``dim``: the gradient of a bias, in at least float32.

    Args:
        g: of any shape and memory order; copied where it has gaps.
        dim: the dimension of the channels.

    Returns:
        ``g.shape[dim]`` sums, float32 (float64 for float64).
    """
    strides = g.stride() if is_dense(g) else torch.empty_like(g, device="meta").stride()
    return packed_relu_backward_sum(g, None, strides, dim=dim)[1]


def is_dense(x: Tensor) -> bool:
    """Whether the elements of ``x`` fill their part of memory, each in a place of its own."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return x.numel() == 0
        expected *= size
    return True


def laid_out(g: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``g`` in the order of these strides, which are dense."""
    if g.stride() == strides or all(
        a == b or size == 1 for a, b, size in zip(g.stride(), strides, g.shape, strict=True)
    ):
        return g
    return torch.empty_strided(g.shape, strides, dtype=g.dtype, device=g.device).copy_(g)


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` with the strides of ``like``, which is dense."""
    return laid_out(x, like.stride())


def empty_mask(x: Tensor, planes: int = 1) -> Tensor:
    """Return memory for ``planes`` bits an element."""
    return x.new_empty(planes * ((x.numel() + 7) // 8), dtype=torch.uint8)


def _pack_bits(x: Tensor, kind: str, a: float, b: float) -> Tensor:
    mask = empty_mask(x)
    kernels(x).pack(kind, x, None, mask, a, b)
    return mask


def _masked(g: Tensor, mask: Tensor, kind: str, yes: float, no: float) -> Tensor:
    dx = torch.empty_like(g)
    kernels(g).masked(kind, dense_like(g, dx), mask, dx, yes, no)
    return dx


def channel_layout(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Return ``(outer, channels, inner)``: how dense ``x`` lies in memory around its channels."""
    outer = inner = 1
    for d, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if d != dim and stride < x.stride(dim):
            inner *= size
        elif d != dim:
            outer *= size
    return (1, 1, outer * inner) if x.shape[dim] == 1 else (outer, x.shape[dim], inner)


def _masked_sums(
    g: Tensor, mask: Tensor | None, dim: int, factors: Tensor | None, gradient: bool, sum: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx = torch.empty_like(g)
    g = dense_like(g, dx)
    sums = g.new_empty(g.shape[dim], dtype=torch.float32) if sum else None
    kind = "pass" if factors is None else "two"
    layout = channel_layout(g, dim)
    kernels(g).channel_sum(kind, g, mask, dx if gradient else None, layout, 1.0, 0.0, factors, sums)
    return dx if gradient else None, sums


def _fake_masked_sums(
    g: Tensor, mask: Tensor | None, dim: int, factors: Tensor | None, gradient: bool, sum: bool
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(g) if gradient else g.new_empty(0)
    return dx, g.new_empty(g.shape[dim] if sum else 0, dtype=torch.float32)


# All of these take tensors that are dense; what they say is in csrc/cpu/kernels.h.
pack_bits = define(
    "packed_bits(Tensor x, str kind, float a, float b) -> Tensor",
    _pack_bits,
    lambda x, kind, a, b: empty_mask(x),
)
masked_op = define(
    "masked_gradient(Tensor g, Tensor mask, str kind, float yes, float no) -> Tensor",
    _masked,
    lambda g, mask, kind, yes, no: torch.empty_like(g),
)
masked_sums_op = define(
    "masked_channel_sums(Tensor g, Tensor? mask, int dim, Tensor? factors, bool gradient, bool sum) "
    "-> (Tensor, Tensor)",
    _masked_sums,
    _fake_masked_sums,
)


class MaskedGradient(torch.autograd.Function):
    """What the bits make of ``g``: linear in it, so that its gradient is the same operation again."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, mask: Tensor, strides: tuple[int, ...], kind: str, yes: float, no: float
    ) -> Tensor:
        """Multiply ``g``, brought into the order of the bits."""
        ctx.save_for_backward(mask)
        ctx.rest = strides, kind, yes, no
        return masked_op(laid_out(g, strides), mask, kind, yes, no)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Do the same."""
        (mask,) = ctx.saved_tensors
        return MaskedGradient.apply(g, mask, *ctx.rest), None, None, None, None, None


class _MaskedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, mask: Tensor | None, strides: tuple[int, ...], dim: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mask)
        ctx.rest = strides, dim
        g = laid_out(g, strides)
        dx, sums = masked_sums_op(g, mask, dim, None, mask is not None, True)
        return (g.view_as(g) if mask is None else dx), sums

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor, of_sums: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        strides, dim = ctx.rest
        channels = of_sums.view([-1 if d == dim else 1 for d in range(of_dx.dim())])
        g = of_dx + channels.to(of_dx.dtype)
        if mask is not None:
            g = MaskedGradient.apply(g, mask, strides, "pass", 1.0, 0.0)
        return g, None, None, None
