"""Tensors that can be computed again from something that is saved anyway.

A layer that trains saves its input. Where that input is a cheap function, elementwise or along a row, of a
tensor that the layer before it saves in any case, as ``layer_norm(x)`` and ``gelu(h)`` are, it need not be
saved: whoever makes such a tensor attaches its recipe, and the layer that would save it saves the recipe's
own inputs instead. The gradients do not change by a bit: the same function of the same numbers runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from thawkit.ops.frozen.packed import version_of

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
    versions = [None if x is None else version_of(x) for x in (y, *inputs)]
    setattr(y, _RECIPE, (Recipe(function, inputs), versions))
    return y


def recipe_of(y: Tensor) -> Recipe | None:
    """The recipe of ``y``; None if it has none, or if it or an input was written to since."""
    recipe, versions = getattr(y, _RECIPE, (None, None))
    if recipe is None or versions != [None if x is None else version_of(x) for x in (y, *recipe.inputs)]:
        return None
    return recipe
