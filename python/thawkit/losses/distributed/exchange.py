"""Collectives that autograd sees. Each is linear, and its backward pass is the transpose over all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thawkit.losses.distributed.ranks import Ranks, Rows
from thawkit.ops.pairwise.common import lifted


def gather(x: Tensor, rows: Rows) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks."""
    return _Gather.apply(x, rows)


def total(x: Tensor, ranks: Ranks) -> Tensor:
    """Return the sum of the ranks' tensors, the same on each of them."""
    return _Total.apply(x, ranks)


def replicated(x: Tensor, ranks: Ranks) -> Tensor:
    """Return a tensor that all ranks hold alike; its gradient becomes the average of theirs."""
    return _Replicated.apply(x, ranks) if x.requires_grad else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        most, shape = max(rows.counts), x.shape[1:]
        padded = _padded(x, most)
        every = padded.new_empty(rows.ranks.world * most, *shape)
        if most:
            _single("all_gather")(every, padded, group=rows.ranks.group)
        if min(rows.counts) == most:
            return every
        parts = every.unflatten(0, (rows.ranks.world, most))
        return torch.cat([part[:count] for part, count in zip(parts, rows.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(g, ctx.rows), None


class _Scatter(torch.autograd.Function):
    """Each rank's part of the sum over ranks; half precision is summed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        most = max(rows.counts)
        wide = lifted(x)
        if min(rows.counts) != most:
            wide = torch.cat([_padded(part, most) for part in wide.split(rows.counts)])
        own = wide.new_empty(most, *x.shape[1:])
        if most:
            _single("reduce_scatter")(own, wide.contiguous(), group=rows.ranks.group)
        return own[: rows.own].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(g, ctx.rows), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(g, ctx.ranks), None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(g, ctx.ranks) / ctx.ranks.world, None


def _single(name: str) -> Any:
    """The collective of one tensor a rank: its name since torch 2.14, or the one before."""
    old = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}[name]
    return getattr(dist, f"{name}_single", None) or getattr(dist, old)


def _padded(x: Tensor, rows: int) -> Tensor:
    if x.shape[0] == rows:
        return x.contiguous()
    padded = x.new_zeros(rows, *x.shape[1:])
    padded[: x.shape[0]] = x
    return padded
