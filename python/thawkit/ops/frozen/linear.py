"""Products with a matrix, of which the backward pass keeps what is cheapest to keep."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thawkit.ops.frozen import onednn
from thawkit.ops.frozen.autocast import autocast, autocast_dtype, full_precision
from thawkit.ops.frozen.packed import Packed
from thawkit.ops.frozen.recompute import recipe_of


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    packed: Packed | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """``x @ weight.T + bias``, as :func:`torch.nn.functional.linear`.

    Where the weight trains and ``x`` has a recipe (:mod:`thawkit.ops.frozen.recompute`), saves the recipe's
    inputs instead of ``x``. Under autocast the weight is saved as it is, and not the copy that it makes.

    Args:
        x: ``(*, I)``.
        weight: ``(O, I)``.
        bias: ``(O,)``.
        packed: where kernels may keep a frozen weight in their own layout.
        transposed: the weight is ``(I, O)``.
    """
    recipe = recipe_of(x) if weight.requires_grad else None
    packed = usable(packed, x, weight)
    casts = autocast_dtype(x) is not None
    acts = recipe is not None or packed is not None or (casts and x.requires_grad)
    if not torch.is_grad_enabled() or not acts:
        return product(x, weight, bias, packed, transposed)
    function, inputs = (recipe.function, recipe.inputs) if recipe else (None, ())
    return _Linear.apply(autocast(x), weight, bias, packed, transposed, function, *inputs)


def usable(packed: Packed | None, x: Tensor, weight: Tensor) -> Packed | None:
    """What lays the weight out for oneDNN where that multiplies faster; else None.

    A weight that trains, or of which nothing is to be kept, is laid out anew for each product, which is worth
    it for many rows.
    """
    if autocast_dtype(x) is not None or not onednn.takes(x, weight) or not onednn.products_gain():
        return None
    if packed is not None and not packed.given_up and not weight.requires_grad:
        return packed
    large = x.numel() >= _MANY_ROWS * x.shape[-1] and weight.numel() >= _LARGE
    return _ANEW if large else None


_ANEW = Packed(given_up=True)
_MANY_ROWS, _LARGE = 256, 512 * 512  # measured: from here on oneDNN gains in all three products


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None, transposed: bool = False
) -> Tensor:
    """As :func:`linear`, by kernels alone. ``packed`` is :func:`usable` or None."""
    if packed is None:
        return F.linear(x, weight.t() if transposed else weight, bias)
    return onednn.linear(x, weight, bias, packed, transposed)


def input_gradient(grad: Tensor, weight: Tensor, packed: Packed | None, transposed: bool = False) -> Tensor:
    """Gradient of :func:`linear` in ``x`` for ``grad``, ``(*, O)``."""
    if packed is not None and not torch.is_grad_enabled():
        return onednn.linear_input_gradient(grad, weight, packed, transposed)
    return grad @ (weight.t() if transposed else weight).to(grad.dtype)


def weight_gradient(grad: Tensor, x: Tensor, packed: Packed | None) -> Tensor:
    """Gradient of :func:`linear` in its weight: ``(O, I)`` of ``grad``, ``(N, O)``, and ``x``, ``(N, I)``."""
    if packed is not None and not torch.is_grad_enabled():
        return onednn.linear(grad.t(), x, None, _ANEW, transposed=True)
    return grad.t() @ x


def no_view(y: Tensor) -> Tensor:
    """``y``, which torch's product of 3-d or strided inputs may have made a view of a matrix.

    What a Function returns may be written to in place only if it is none.
    """
    return y if y._base is None else y.data


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        packed: Packed | None,
        transposed: bool,
        function: Any,
        *recipe_inputs: Tensor | None,
    ) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad[:3]
        ctx.packed, ctx.transposed, ctx.function = packed, transposed, function
        ctx.bias_dtype = None if bias is None else bias.dtype
        again = recipe_inputs if function else (x,)
        ctx.save_for_backward(weight if needs_x else None, *(again if needs_weight else ()))
        if autocast_dtype(x) is not None:
            weight, bias = autocast(weight), None if bias is None else autocast(bias)
        return no_view(product(x, weight, bias, packed, transposed))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with full_precision(grad):
            if needs_x:
                grad_x = input_gradient(grad, weight, ctx.packed, ctx.transposed)
            if needs_weight:
                x = ctx.function(*saved) if ctx.function else saved[0]
                x = x.reshape(-1, x.shape[-1]).to(grad.dtype)
                if ctx.transposed:
                    grad_weight = weight_gradient(x, rows, ctx.packed)
                else:
                    grad_weight = weight_gradient(rows, x, ctx.packed)
        if needs_bias:
            grad_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, *(None,) * (len(ctx.needs_input_grad) - 3)
