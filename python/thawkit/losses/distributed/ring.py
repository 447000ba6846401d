"""Losses whose keys travel round the ranks: nobody ever holds more than a few ranks' keys.

In a turn every rank passes the keys that it holds to the next one, until each rank has seen those of all
others. A second turn computes the gradients; the sums of the keys' gradients follow the keys, a step behind,
and end at home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thawkit.losses.distributed.ranks import Rows, agree
from thawkit.losses.distributed.terms import Keys, Turn
from thawkit.ops.pairwise.common import full_precision, lifted


def row_terms(q: Tensor, keys: Tensor, scalars: tuple[Tensor, ...], turn: Turn) -> tuple[Tensor, ...]:
    """Return each term for each query, over the keys of all ranks; the gradients cost a second turn."""
    return _RowTerms.apply(turn, q, keys, *scalars)


def total_of_sums(q: Tensor, keys: Tensor, scalars: tuple[Tensor, ...], turn: Turn, weight: float) -> Tensor:
    """Return the sum over queries of terms that are sums, times a weight, gradients ready after one turn."""
    return _TotalOfSums.apply(turn, weight, q, keys, *scalars)


class _RowTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turn: Turn, q: Tensor, keys: Tensor, *scalars: Tensor) -> tuple[Tensor, ...]:
        visits = [
            [term.of(q, visited, scalars, None) for term in turn.terms]
            for _, visited in _visits(turn, keys)
            if visited.rows.shape[0]
        ]
        nothing = _zeros(q, q.shape[:1])
        results, parts = [], []
        for number, term in enumerate(turn.terms):
            if term.log_sum:
                part = torch.stack([nothing - torch.inf, *(visit[number] for visit in visits)])
                results.append(part.logsumexp(0))
                parts.append(part[1:])
            else:
                results.append(sum((visit[number] for visit in visits), nothing))
        ctx.turn = turn
        ctx.save_for_backward(q, keys, *scalars, *results, *parts)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        turn = ctx.turn
        saved = _saved(ctx, turn)
        inputs, saved = saved[: len(ctx.needs_input_grad) - 1], saved[len(ctx.needs_input_grad) - 1 :]
        results, parts = saved[: len(turn.terms)], iter(saved[len(turn.terms) :])
        shares = [next(parts) if term.log_sum else None for term in turn.terms]

        def weights(visit: int) -> list[Tensor]:
            # The slope of logsumexp_j s_ij over all keys is exp(s_ij - all_i), over those of one visit
            # exp(s_ij - visit_i): the latter times exp(visit_i - all_i) is the former, exactly.
            return [
                g
                if part is None
                else (g * (part[visit] - result).exp()).masked_fill(part[visit].isneginf(), 0)
                for g, part, result in zip(upstream, shares, results, strict=True)
            ]

        _, gradients = _with_gradients(turn, weights, inputs, ctx.needs_input_grad[1:])
        return None, *gradients


class _TotalOfSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turn: Turn, weight: float, *inputs: Tensor) -> Tensor:
        total, gradients = _with_gradients(
            turn, lambda _: [weight] * len(turn.terms), inputs, ctx.needs_input_grad[2:]
        )
        ctx.turn = turn
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = _saved(ctx, ctx.turn)
        return None, None, *(None if x is None else x * g.to(x.dtype) for x in saved)


def _saved(ctx: Any, turn: Turn) -> list[Any]:
    """The saved tensors, if autograd can go on on all ranks."""
    problem = ""
    # once_differentiable would raise only where autograd visits it, which torch.autograd.grad need not do
    if torch.is_grad_enabled():
        problem = "mode='ring' has no second derivatives (create_graph=True); mode='gather' has"
    try:
        saved = list(ctx.saved_tensors)
    except RuntimeError as error:  # one was changed in place
        problem = str(error)
    agree(turn.rows.ranks, problem)
    return saved


def _with_gradients(
    turn: Turn,
    weights: Callable[[int], Sequence[Tensor | float]],
    inputs: Sequence[Tensor],
    need: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """A turn that returns the weighted sum of all terms and its gradients, of those inputs that need one."""
    q, keys, *scalars = (x.detach().requires_grad_(n) for x, n in zip(inputs, need, strict=True))
    total = _zeros(q, ())
    sums = {n: torch.zeros_like(lifted(x)) for n, x in enumerate(inputs) if need[n]}
    homing = _Homing(turn.rows) if _OF_KEYS in sums else None
    visit = 0
    for owner, visited in _visits(turn, keys):
        rows = visited.rows.detach().requires_grad_(need[_OF_KEYS])
        found = {_OF_KEYS: rows.detach()}  # of no keys, the gradient of them
        if rows.shape[0]:
            with torch.enable_grad(), full_precision(q):
                value = _zeros(q, ())
                for term, weight in zip(turn.terms, weights(visit), strict=True):
                    value = value + term.of(q, visited._replace(rows=rows), tuple(scalars), weight)
                leaves = [x for x in (q, rows, *scalars) if x.requires_grad]
                found = dict(zip(sums, torch.autograd.grad(value, leaves) if leaves else (), strict=True))
            total += value.detach()
            visit += 1
        if homing is not None and owner != turn.rows.ranks.rank:
            homing.add(owner, lifted(found.pop(_OF_KEYS)).contiguous())
        for n, gradient in found.items():
            if n in sums:
                sums[n] += gradient
    if homing is not None:
        sums[_OF_KEYS] += homing.home()
    return total, [sums[n].to(x.dtype) if n in sums else None for n, x in enumerate(inputs)]


_OF_KEYS = 1  # their place among the inputs


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the type of a loss."""
    return like.new_zeros(shape, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _visits(turn: Turn, keys: Tensor) -> Iterator[tuple[int, Keys]]:
    """Yield every rank and its keys, one's own first; the next keys travel while these are used."""
    ranks = turn.rows.ranks
    tensors = [x.detach().contiguous() for x in (keys, turn.labels) if x is not None]
    arriving = _pass_on(turn.rows, ranks.rank, tensors, _KEYS)
    if turn.with_own:
        yield ranks.rank, Keys(keys.detach(), turn.labels, 0)
    for step in range(1, ranks.world):
        owner = (ranks.rank - step) % ranks.world
        tensors = arriving.wait()
        if step + 1 < ranks.world:
            arriving = _pass_on(turn.rows, owner, tensors, _KEYS)
        yield owner, Keys(tensors[0], tensors[1] if len(tensors) > 1 else None, None)


class _Homing:
    """Sums for each rank's keys that follow them round and end at home."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self.arriving: _Arrival | None = None

    def add(self, owner: int, part: Tensor) -> None:
        if self.arriving is not None:
            part = part + self.arriving.wait()[0]
        self.arriving = _pass_on(self.rows, owner, [part], _SUMS)

    def home(self) -> Tensor:
        assert self.arriving is not None  # there are other ranks
        return self.arriving.wait()[0]


_KEYS, _SUMS = 0, 16  # tags: the messages of one tag arrive in the order in which they leave


@dataclass
class _Arrival:
    works: list[dist.Work]
    sent: list[Tensor]  # kept until it has left
    received: list[Tensor]

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.received


def _pass_on(rows: Rows, owner: int, tensors: list[Tensor], tag: int) -> _Arrival:
    """Send tensors of a rank's rows to the next rank, and begin to receive those that the previous one has.

    These are of the rank before ``owner``.
    """
    ranks = rows.ranks
    after, before = (ranks.rank + 1) % ranks.world, (ranks.rank - 1) % ranks.world
    count = rows.counts[(owner - 1) % ranks.world]
    received = [x.new_empty(count, *x.shape[1:]) for x in tensors]
    transfers = [
        dist.P2POp(operation, x, group=ranks.group, group_peer=peer, tag=tag + number)
        for operation, peer, side in ((dist.isend, after, tensors), (dist.irecv, before, received))
        for number, x in enumerate(side)
        if x.numel()
    ]
    return _Arrival(dist.batch_isend_irecv(transfers) if transfers else [], tensors, received)
