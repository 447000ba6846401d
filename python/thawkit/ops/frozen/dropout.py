"""Dropout that saves one bit an element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.frozen.masks import (
    KERNELS,
    MaskedGradient,
    dense_like,
    is_dense,
    kernels,
    masked_op,
    pack_bits,
)
from thawkit.ops.frozen.overrides import overridable
from thawkit.ops.frozen.recompute import recipe_of, with_recipe


@overridable
def packed_dropout(x: Tensor, p: float = 0.5, training: bool = True, *, inplace: bool = False) -> Tensor:
    """``F.dropout``, saving one bit an element. Torch saves a number (CPU) or a byte (CUDA).

    Values and gradients are those of torch from the same state of its generator, which is left as torch
    leaves it.

    Args:
        x: any shape; float32, bfloat16 or float16 by kernel, float64 by torch's own operator.
        p: the probability that an element is dropped.
        training: whether anything is dropped at all.
        inplace: overwrite ``x`` and return it; by torch's own operator, which saves more, where ``x`` is a
            view, and on CUDA.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ThawkitError: ``x`` is not floating.
        ValueError: ``p`` is not between 0 and 1.
    """
    checks.floating("x", x)
    saves = training and 0.0 < p < 1.0 and x.numel() > 0 and x.requires_grad and torch.is_grad_enabled()
    writable = not (x.is_leaf or x._is_view() or x.is_cuda) and is_dense(x)
    if (
        not saves
        or (inplace and not writable)
        or torch.compiler.is_compiling()
        or choose("packed_dropout", KERNELS, x) == "reference"
    ):
        return F.dropout(x, p, training, inplace)
    recipe = recipe_of(x)  # before x is overwritten
    y, mask, factor = _Dropout.apply(x, p, inplace)
    if recipe is not None:
        again = partial(_dropped, recipe.function, y.stride(), factor)
        with_recipe(y, again, mask, *recipe.inputs)
    return y


def _dropped(
    function: Callable[..., Tensor],
    strides: tuple[int, ...],
    factor: float,
    mask: Tensor,
    *inputs: Tensor | None,
) -> Tensor:
    return MaskedGradient.apply(function(*inputs), mask, strides, "two", factor, 0.0)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, inplace: bool) -> tuple[Tensor, Tensor, float]:
        if x.is_cuda:
            y, kept = torch.native_dropout(x, p, True)
            factor = 1 / (1 - p)
            mask = pack_bits(dense_like(kept, y), "true", 0.0, 0.0)
        else:
            # torch draws numbers of the dtype of x; the generator gives the same to booleans
            kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
            factor = torch.ones((), dtype=x.dtype).div_(1 - p).item()
            mask = pack_bits(kept, "true", 0.0, 0.0)
            if inplace:
                kernels(x).masked("two", x, mask, x, factor, 0.0)
                ctx.mark_dirty(x)
                y = x
            else:
                y = masked_op(dense_like(x, kept), mask, "two", factor, 0.0)
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.rest = y.stride(), "two", factor, 0.0
        return y, mask, factor

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return MaskedGradient.apply(g, mask, *ctx.rest), None, None
