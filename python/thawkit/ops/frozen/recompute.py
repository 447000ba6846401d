"""Tensors that can be computed again from something that is saved anyway.

A layer that trains saves its input. Where that input is a cheap function, elementwise or along a row, of a
tensor that the layer before it saves in any case, as ``layer_norm(x)`` and ``gelu(h)`` are, it need not be
saved: whoever makes such a tensor attaches its recipe, and the layer that would save it saves the recipe's
own inputs instead. The gradients do not change by a bit: the same function of the same numbers runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from thawkit.ops.frozen.autocast import as_now
from thawkit.ops.frozen.packed import sample, version_of

_RECIPE = "_thawkit_recipe"


@dataclass(frozen=True)
class Recipe:
    """How to compute a tensor again.

    Attributes:
        function: takes ``inputs``.
        inputs: tensors that are saved for the backward pass of what computed the tensor.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor | None, ...]


def with_recipe(y: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Attach to ``y`` that it is ``function(*inputs)``, and return it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # FSDP frees a layer's parameters when it has run, and whoever uses the recipe may be another layer.
        inputs = tuple(x.detach().clone() if isinstance(x, nn.Parameter) else x for x in inputs)
    marks = [None if x is None else version_of(x) for x in (y, *inputs)]
    setattr(y, _RECIPE, (Recipe(as_now(function, y), inputs), marks, _values(y)))
    return y


def _values(y: Tensor) -> Tensor | None:
    """Some of the values, for writes that go through ``.data``; None where there are none to be had."""
    plain = type(y) is Tensor and y.device.type == "cpu" and y.is_contiguous()
    return sample(y) if plain and not torch.compiler.is_compiling() else None


def recipe_of(y: Tensor) -> Recipe | None:
    """The recipe of ``y``, or of what it is a view of; None if it, or an input, was written to since."""
    recipe, base = _own_recipe(y), y._base
    if recipe is not None or base is None:
        return recipe
    recipe = _own_recipe(base) if base.dtype == y.dtype else None
    if recipe is None or not _only_views_between(y, base):
        return None
    view = y.shape, y.stride(), y.storage_offset()
    return Recipe(partial(_view_again, recipe.function, base.stride(), view), recipe.inputs)


def _own_recipe(y: Tensor) -> Recipe | None:
    recipe, marks, values = getattr(y, _RECIPE, (None, None, None))
    if recipe is None or marks != [None if x is None else version_of(x) for x in (y, *recipe.inputs)]:
        return None
    return recipe if values is None or torch.equal(values, sample(y)) else None


def _only_views_between(y: Tensor, base: Tensor) -> bool:
    """Whether the gradient of ``y`` goes to ``base`` and through no Function of Python's on its way."""
    node: Any = y.grad_fn
    while node is not base.grad_fn:
        if node is None or isinstance(node, BackwardCFunction) or len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    return node is not None


def _view_again(
    function: Callable[..., Tensor], strides: tuple[int, ...], view: tuple[Any, ...], *inputs: Tensor | None
) -> Tensor:
    base = function(*inputs)
    if base.stride() != strides:
        base = base.new_empty_strided(base.shape, strides).copy_(base)
    return base.as_strided(*view)


def apply_again(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None) -> Tensor:
    """``function(x, *parameters)``, whose backward pass needs nothing but these saved, and with a recipe.

    Args:
        function: elementwise or along a row, of several operators that would each save something.
        x: any shape.
        parameters: what else it takes; one of all needs a gradient.
    """
    return with_recipe(_Again.apply(function, x, *parameters), function, x, *parameters)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.function = as_now(function, x)
        return function(x, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            if not further:
                inputs = [
                    None if t is None else t.detach().requires_grad_(need)
                    for t, need in zip(inputs, needed, strict=True)
                ]
            y = ctx.function(*inputs)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=further))
        return None, *(next(found) if need else None for need in needed)
