"""Lossy: values rounded to 8, 4 or 2 bits, for the backward pass.

Values are rounded in groups of neighbours in memory, to the nearest of a group's levels. With 8 and 4 bits
a group is 64 values and its levels lie at even distances from its least to its greatest one; with 2 bits it
is 256 values and its levels are the means of its four parts. Beside the codes a group keeps two or four
numbers in float32: 9, 5 and 2.5 bits a value in all.

Rounding is deterministic. Stochastic rounding, with which ActNN (Chen et al. 2021) and GACT (Liu et al. 2022)
make the gradient unbiased, doubles the mean square of the error: on a ViT-Tiny of random weights the gradient
is further from the exact one at every width (cosine with inputs and derivatives at 4 bits 0.990 against
0.995, at 2 bits with even levels 0.79 against 0.88). The 2-bit levels, means of what they stand for, keep
sums as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen import reference
from thawkit.ops.frozen.masks import KERNELS, dense_like, kernels, laid_out

BITS = tuple(reference.GROUP)


class Form(NamedTuple):
    """What codes do not tell about the tensor that they were made of; ``strides`` are dense."""

    bits: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class Quantized(NamedTuple):
    """A rounded tensor: ``ceil(n bits / 8)`` bytes of codes, the numbers of its groups, and its form."""

    codes: Tensor
    numbers: Tensor
    form: Form


def check_bits(name: str, bits: Any) -> None:
    """Require 8, 4 or 2."""
    if type(bits) is not int or bits not in BITS:
        raise ThawkitError(f"{name} must be 8, 4 or 2, got {bits!r}")


def quantize(x: Tensor, bits: int = 8) -> Quantized:
    """Round ``x``, outside of autograd.

    A group that holds NaN or an infinity comes back as NaN as a whole: it is never taken for numbers. With 8
    and 4 bits a group whose values lie further apart than float32's largest number does not come back finite.

    Args:
        x: any shape and memory format; float32, bfloat16 or float16 by kernel, float64 by the reference. What
            lies in memory without gaps is read as it lies.
        bits: 8, 4 or 2 for a value.

    Raises:
        ThawkitError: ``x`` is not floating, or ``bits`` is none of these.
    """
    checks.floating("x", x)
    check_bits("bits", bits)
    with torch.no_grad():
        x = x.detach()
        x = dense_like(x, torch.empty_like(x))
        form = Form(bits, x.shape, x.stride(), x.dtype)
        if choose("quantize", KERNELS, x) == "reference":
            codes, numbers = reference.quantize(x.as_strided((x.numel(),), (1,)), bits)
        else:
            codes, numbers = _quantize_op(x, bits)
        return Quantized(codes, numbers, form)


def dequantize(q: Quantized) -> Tensor:
    """The values that ``q`` stands for, in the shape, dtype and order in memory of what it was made of."""
    return _restored(q, None)


def dequantized_product(q: Quantized, g: Tensor) -> Tensor:
    """``g`` times the values of ``q``, in one pass; of the dtype of ``g`` and in the order of ``q``."""
    if g.shape != q.form.shape:
        raise ThawkitError(f"g must have shape {tuple(q.form.shape)}, got {tuple(g.shape)}")
    return _restored(q, g)


def _restored(q: Quantized, g: Tensor | None) -> Tensor:
    bits, shape, strides, dtype = q.form
    with torch.no_grad():
        like = q.numbers.new_empty(0, dtype=dtype) if g is None else g
        if choose("quantize", KERNELS, like) == "reference":
            flat = reference.dequantize(q.codes, q.numbers, bits, shape.numel())
            y = flat.as_strided(shape, strides)
            return (y if g is None else y * g).to(like.dtype)
        g = None if g is None else laid_out(g, strides)
        return _dequantize_op(like, g, q.codes, q.numbers, bits, list(shape), list(strides))


def _sizes(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    n, group = x.numel(), reference.GROUP[bits]
    numbers = -(-n // group) * (4 if bits == 2 else 2)
    return x.new_empty(-(-n * bits // 8), dtype=torch.uint8), x.new_empty(numbers, dtype=torch.float32)


def _quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes, numbers = _sizes(x, bits)
    kernels(x).quantize(x, codes, numbers, bits)
    return codes, numbers


def _values(
    like: Tensor, g: Tensor | None, codes: Tensor, numbers: Tensor, bits: int, shape: list, strides: list
) -> Tensor:
    return like.new_empty_strided(shape, strides)


def _dequantize(
    like: Tensor, g: Tensor | None, codes: Tensor, numbers: Tensor, bits: int, shape: list, strides: list
) -> Tensor:
    y = like.new_empty_strided(shape, strides)
    kernels(y).dequantize(codes, numbers, g, y, bits)
    return y


_quantize_op = define("quantize(Tensor x, int bits) -> (Tensor, Tensor)", _quantize, _sizes)
_dequantize_op = define(
    "dequantize(Tensor like, Tensor? g, Tensor codes, Tensor numbers, int bits, int[] shape, int[] strides) "
    "-> Tensor",
    _dequantize,
    _values,
)
