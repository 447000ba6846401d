"""What the pairwise operators share around their definitions: precision, the reduction."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import in_transform

DISTANCES = ("euclidean", "cosine")


def lifted(x: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which products on the device of ``x`` are not cast to half precision."""
    if x.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of (batches of) matrices, whose gradients are not cast to half precision either.

    A backward pass that is called where autocast is on would cast the products that autograd writes.
    """
    return a @ b if in_transform() else _Product.apply(a, b)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with full_precision(a):
            return a @ b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return product(g, b.mT) if need_a else None, product(a.mT, g) if need_b else None


def ignored_rows(weight: Tensor | None, *parts: Tensor) -> Tensor | None:
    """Return which rows of weight 0 hold no numbers in some part: they are to be filled with 0, (N,) bool.

    A loss that is left out of the sum still has a gradient of 0 times what is no number.
    """
    if weight is None:
        return None
    numbers = torch.stack([x.detach().isfinite().flatten(1).all(1) for x in parts]).all(0)
    return (weight == 0) & ~numbers


def reduced(rows: Tensor, reduction: str) -> Tensor:
    """Return the rows, their sum or their mean."""
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()


def summand(reduction: str, rows: int) -> float | None:
    """Return the factor of each of ``rows`` losses in their sum, None where there is no sum."""
    return {"none": None, "sum": 1.0}.get(reduction, 1.0 / max(rows, 1))


def reduced_over(rows: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    """Return the rows, their sum, or their sum over a count of their own; of nothing the mean is 0."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / (count.clamp_min(1).to(rows.dtype) if isinstance(count, Tensor) else max(count, 1))


def numbered(labels: Tensor) -> Tensor:
    """Return the number of each row's class, from 0 on; by a sort, whose size is known when compiling."""
    ascending, order = labels.sort()
    number = torch.zeros_like(order)
    number[1:] = (ascending[1:] != ascending[:-1]).cumsum(0)
    return torch.empty_like(order).scatter_(0, order, number)


def with_gradient_times(x: Tensor, factor: float) -> Tensor:
    """Return x, whose gradient will be ``factor`` times the one that comes back."""
    still = x.detach()
    return still + (x - still) * factor
