"""Batches as a model takes them, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thawkit.frozen.cut.plan import NoCutError
from thawkit.frozen.measure import Example

_ROUNDING = 1e-3  # of the largest magnitude: kernels that round otherwise differ by far less


def as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a batch."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def example_of(call: Any) -> Example:
    """Undo :func:`as_call`."""
    args, kwargs = call
    return kwargs or args


def leaves_of(example: Example) -> list[Any]:
    """What a batch consists of, as a flat list."""
    return tree_leaves(as_call(example))


def same_row(a: Tensor, b: Tensor) -> bool:
    """Whether the first sample's row is the same but for rounding."""
    return near(a.detach()[0], b.detach()[0])


def near(x: Tensor, y: Tensor) -> bool:
    """Whether ``x`` and ``y`` of one shape are the same but for rounding."""
    if not x.is_floating_point():
        return torch.equal(x, y)
    limit = max(_ROUNDING, 4 * torch.finfo(x.dtype).eps) * x.abs().max().item() if x.numel() else 0.0
    return bool(torch.allclose(x.double(), y.double(), rtol=0.0, atol=limit, equal_nan=True))


def two_batches(leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Two batches of 2 and 3 samples that share the first one, made of a batch of any size.

    In the second the others are larger by far, either way, so that what mixes samples shows in the first.
    """
    size = leaves[0].shape[0]
    if any(t.dim() and t.shape[0] != size for t in leaves):
        raise NoCutError("the inputs have no common first dimension")

    def varied(x: Tensor, factor: float = 0.75) -> Tensor:
        x = x.roll(1, -1) if x.dim() > 1 else x
        return x.flip(-1) * factor + 0.125 if x.is_floating_point() else x

    firsts, seconds = [], []
    for t in leaves:
        if t.dim():
            two = t[:2] if size > 1 else torch.cat([t, varied(t)])
            firsts.append(two.clone())
            seconds.append(torch.cat([two[:1], varied(two[1:], 5.0), varied(two[:1], -4.0)]))
        else:
            firsts.append(t)
            seconds.append(t)
    return firsts, seconds
