"""Lossy: layers whose saved activations are rounded. Values are torch's own; gradients are near them.

What a gradient is made of keeps as many bits as it needs (:class:`Bits`): the bounded derivative of an
activation, or the input that a trainable weight is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops.frozen.convolution import (
    CONVOLUTION,
    bias_gradient,
    input_gradient,
    weight_gradient,
)
from thawkit.ops.frozen.packed import version_of
from thawkit.ops.frozen.quantize import (
    Form,
    Quantized,
    check_bits,
    dequantize,
    dequantized_product,
    quantize,
)
from thawkit.ops.frozen.recompute import with_recipe

_ROUNDED = "_thawkit_rounded"

aten = torch.ops.aten


class Bits(NamedTuple):
    """Bits for derivatives of activations, and for inputs of trainable weights.

    Rounded inputs move the gradient further than derivatives rounded to as many bits (a ViT-Tiny of random
    weights: cosine 0.996 against 0.9986 at 4 bits, 0.92 against 0.98 at 2), so they get twice as many, at
    most 8.
    """

    derivative: int
    input: int


def bits_of(act_bits: Any) -> Bits:
    """What ``act_bits`` means.

    Raises:
        ThawkitError: it is not 8, 4 or 2.
    """
    check_bits("act_bits", act_bits)
    return Bits(act_bits, min(8, 2 * act_bits))


def _no_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise ThawkitError(
            "act_bits: a gradient from rounded activations has no derivative of its own (create_graph=True); "
            "freeze without act_bits"
        )


def rounded(x: Tensor, bits: int) -> Quantized:
    """``quantize(x, bits)``, the same again for all who ask while ``x`` lives and is not written to."""
    known, version = getattr(x, _ROUNDED, (None, None))
    if known is None or version != version_of(x) or known.form.bits != bits:
        known = quantize(x, bits)
        setattr(x, _ROUNDED, (known, version_of(x)))
    return known


def _restored(codes: Tensor, numbers: Tensor, form: Form) -> Tensor:
    _no_second_derivative()
    return dequantize(Quantized(codes, numbers, form))


# ---- activations

# The derivative of each function from x and y = f(x); `one` is 1 in the shape of x.
_DERIVATIVES: dict[str, Callable[..., Tensor]] = {
    "gelu": lambda one, x, y, approximate: aten.gelu_backward(one, x, approximate=approximate),
    "silu": lambda one, x, y: aten.silu_backward(one, x),
    "mish": lambda one, x, y: aten.mish_backward(one, x),
    "hardswish": lambda one, x, y: aten.hardswish_backward(one, x),
    "tanh": lambda one, x, y: aten.tanh_backward(one, y),
    "sigmoid": lambda one, x, y: aten.sigmoid_backward(one, y),
    "elu": lambda one, x, y, alpha: aten.elu_backward(one, alpha, 1, 1, False, x),
    "softplus": lambda one, x, y, beta, threshold: aten.softplus_backward(one, x, beta, threshold),
}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "softplus": F.softplus,
}


def activation(x: Tensor, kind: str, bits: int, *settings: Any) -> Tensor:
    """A smooth activation that saves its derivative in ``bits`` an element.

    Args:
        x: any shape.
        kind: ``gelu``, ``silu``, ``mish``, ``hardswish``, ``tanh``, ``sigmoid``, ``elu`` or ``softplus``.
        bits: 8, 4 or 2.
        settings: the function's: ``approximate``, ``alpha``, or ``beta`` and ``threshold``.
    """
    return _Activation.apply(x, kind, bits, settings)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, bits: int, settings: tuple[Any, ...]) -> Tensor:
        y = _FUNCTIONS[kind](x, *settings)
        codes, numbers, ctx.form = quantize(_DERIVATIVES[kind](torch.ones_like(x), x, y, *settings), bits)
        ctx.save_for_backward(codes, numbers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _no_second_derivative()
        codes, numbers = ctx.saved_tensors
        return dequantized_product(Quantized(codes, numbers, ctx.form), grad), None, None, None


# ---- products with a weight that trains


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """``F.linear`` that saves ``x``, ``(*, I)``, in ``bits`` an element for the gradient of the weight."""
    return _Linear.apply(x, weight, bias, rounded(x, bits))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, q: Quantized) -> Tensor:
        codes, numbers, ctx.form = q
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, codes, numbers)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _no_second_derivative()
        weight, codes, numbers = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
        if ctx.needs_input_grad[1]:
            x = _restored(codes, numbers, ctx.form)
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...], groups: int, bits: int
) -> Tensor:
    """A convolution that saves ``x``, ``(N, C, *sizes)``, in ``bits`` an element for the weight's gradient.

    ``geometry`` is stride, padding and dilation, each a tuple.
    """
    return _Convolution.apply(x, weight, bias, rounded(x, bits), geometry, groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        q: Quantized,
        geometry: tuple[Any, ...],
        groups: int,
    ) -> Tensor:
        codes, numbers, ctx.form = q
        ctx.save_for_backward(weight, codes, numbers)
        ctx.geometry, ctx.groups, ctx.layout = geometry, groups, (x.shape, x.stride())
        ctx.bias_dtype = None if bias is None else bias.dtype
        stride, padding, dilation = geometry
        return CONVOLUTION[weight.dim() - 3](x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _no_second_derivative()
        weight, codes, numbers = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(grad, ctx.layout, weight, ctx.geometry, ctx.groups)
        if ctx.needs_input_grad[1]:
            x = _restored(codes, numbers, ctx.form)
            grad_weight = weight_gradient(grad, x, weight, ctx.geometry, ctx.groups)
        if ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(grad, 1, ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, None, None


# ---- normalizations: rounded is the normalized input, in which no channel or row is larger than another


def layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, bits: int
) -> Tensor:
    """``F.layer_norm`` that saves its normalized input in ``bits`` an element.

    A linear layer after it computes its input again from the same bits (:mod:`.recompute`).
    """
    with torch.no_grad():
        normalized, _, inverse = torch.native_layer_norm(x, shape, None, None, eps)
        q = quantize(normalized, bits)
    y = _LayerNorm.apply(x, weight, bias, q, inverse, shape, eps)
    again = partial(_normalized_again, q.form, y.dtype)
    return with_recipe(y, again, q.codes, q.numbers, weight, bias)


def _normalized_again(
    form: Form, dtype: torch.dtype, codes: Tensor, numbers: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    x = _restored(codes, numbers, form)
    if weight is not None:
        x = x * weight
    return (x if bias is None else x + bias).to(dtype)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        q: Quantized,
        inverse: Tensor,
        shape: tuple[int, ...],
        eps: float,
    ) -> Tensor:
        codes, numbers, ctx.form = q
        ctx.save_for_backward(codes, numbers, inverse, weight)
        ctx.axes = tuple(range(-len(shape), 0))
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias)]
        return F.layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, numbers, inverse, weight = ctx.saved_tensors
        normalized = _restored(codes, numbers, ctx.form)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        outer = list(range(grad.dim() - len(ctx.axes)))
        accumulate = torch.promote_types(grad.dtype, torch.float32)
        grad_x = grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = _summed(grad * normalized, outer, accumulate).to(ctx.dtypes[1])
        if needs_bias:
            grad_bias = _summed(grad, outer, accumulate).to(ctx.dtypes[2])
        if needs_x:
            g = grad.to(accumulate) if weight is None else grad.to(accumulate) * weight
            along = (g * normalized).mean(ctx.axes, keepdim=True)
            grad_x = (g - g.mean(ctx.axes, keepdim=True) - normalized * along) * inverse
            grad_x = grad_x.to(ctx.dtypes[0])
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _summed(x: Tensor, dims: list[int], dtype: torch.dtype) -> Tensor:
    return x.sum(dims, dtype=dtype) if dims else x.to(dtype)


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    by_batch: bool,
    momentum: float,
    eps: float,
    bits: int,
) -> Tensor:
    """``F.batch_norm`` of ``x``, ``(N, C, *sizes)``, saving its normalized input in ``bits`` an element."""
    return _BatchNorm.apply(x, weight, bias, mean, variance, by_batch, momentum, eps, bits)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        by_batch: bool,
        momentum: float,
        eps: float,
        bits: int,
    ) -> Tensor:
        ctx.by_batch = by_batch
        if by_batch:
            y, centre, inverse = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, eps)
        else:
            assert mean is not None
            assert variance is not None
            y = F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)
            centre, inverse = mean, torch.rsqrt(variance + eps)
        channels = (1, -1, *(1,) * (x.dim() - 2))
        normalized = ((x - centre.view(channels)) * inverse.view(channels)).to(x.dtype)
        codes, numbers, ctx.form = quantize(normalized, bits)
        ctx.save_for_backward(codes, numbers, inverse, weight)
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, numbers, inverse, weight = ctx.saved_tensors
        normalized = _restored(codes, numbers, ctx.form)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        others = [0, *range(2, grad.dim())]
        accumulate = torch.promote_types(grad.dtype, torch.float32)
        by_channel = (1, -1, *(1,) * (grad.dim() - 2))
        grad_x = grad_weight = grad_bias = along = total = None
        if needs_weight or (needs_x and ctx.by_batch):
            along = _summed(grad * normalized, others, accumulate)
        if needs_bias or (needs_x and ctx.by_batch):
            total = _summed(grad, others, accumulate)
        if needs_x:
            scale = inverse if weight is None else inverse * weight
            grad_x = grad
            if along is not None and total is not None and ctx.by_batch:
                count = grad.numel() // grad.shape[1]
                grad_x = grad - (total / count).view(by_channel)
                grad_x = grad_x - normalized * (along / count).view(by_channel)
            grad_x = (grad_x * scale.view(by_channel)).to(ctx.form.dtype)
        if needs_weight and along is not None:
            grad_weight = along.to(ctx.dtypes[0])
        if needs_bias and total is not None:
            grad_bias = total.to(ctx.dtypes[1])
        return grad_x, grad_weight, grad_bias, *(None,) * 6


def is_mixture_of_attention(x: Tensor) -> bool:
    """Whether ``x`` is a view of the result of scaled dot-product attention, which saves that itself."""
    node = x.grad_fn
    for _ in range(8):
        if node is None:
            return False
        name = node.name()
        if name.startswith("ScaledDotProduct"):
            return True
        if not any(view in name for view in ("Transpose", "View", "Reshape", "Permute", "Alias")):
            return False
        node = node.next_functions[0][0]
    return False
