"""pytorch-metric-learning's losses of the pairs and triplets that a miner has chosen.

A miner has computed the matrix of all distances to choose from, and so do these, in plain torch; so do the
triplets of ``swap`` and ``smooth_loss``, whose sums over positives and negatives do not separate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, product
from thawkit.ops.pairwise.reference.distances import distances

_AT_ONCE = 1 << 22  # triplets in memory, of those that are not chosen by anybody


class Pairs(NamedTuple):
    """Indices of anchors and their positives, and of anchors and their negatives."""

    a1: Tensor
    p: Tensor
    a2: Tensor
    n: Tensor


def chosen(indices_tuple: object, x: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Require three tensors of indices, triplets, or four, positive pairs and negative ones.

    Raises:
        ThawkitError: they are not, have other lengths, or point at no row.
    """
    given = tuple(indices_tuple) if isinstance(indices_tuple, (tuple, list)) else ()
    if len(given) not in (3, 4) or not all(isinstance(i, Tensor) and i.dim() == 1 for i in given):
        raise ThawkitError(
            "indices_tuple must hold three tensors (anchors, positives, negatives) or four (anchors, "
            f"positives, anchors, negatives), of one dimension each, got {type(indices_tuple).__name__} "
            f"of {len(given)}"
        )
    for i in given:
        if i.is_floating_point() or i.is_complex() or i.dtype == torch.bool:
            raise ThawkitError(f"indices_tuple must hold integers, got {i.dtype}")
    found = tuple(i.to(x.device, torch.int64) for i in given)
    parts = [found] if len(found) == 3 else [found[:2], found[2:]]
    if any(len({len(i) for i in part}) > 1 for part in parts):
        raise ThawkitError(
            f"indices_tuple must name as many rows in each place, got {[len(i) for i in given]} indices"
        )
    sizes = [len(x), *[len(others)] * (len(found) - 1)]
    if len(found) == 4:
        sizes[2] = len(x)
    for index, size in zip(found, sizes, strict=True):
        if len(index) and checks.readable(index) and not bool(((index >= 0) & (index < size)).all()):
            raise ThawkitError(
                f"indices_tuple must hold indices of {len(x)} anchors and {len(others)} others"
            )
    return found


def pairs(indices: tuple[Tensor, ...]) -> Pairs:
    """Return pairs; of triplets those of each, so that a pair in several of them counts several times."""
    if len(indices) == 4:
        return Pairs(*indices)
    a, p, n = indices
    return Pairs(a, p, a, n)


def triplets(indices: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return triplets; of pairs each positive one with each negative one of its anchor."""
    if len(indices) == 3:
        a, p, n = indices
        return a, p, n
    a1, p, a2, n = indices
    of_p, of_n = torch.where(a1[:, None] == a2)
    return a1[of_p], p[of_p], n[of_n]


def random_triplets(
    labels: Tensor, ref_labels: Tensor, own: int | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``count`` triplets of each anchor that has any, drawn uniformly and with replacement.

    They are not those that pytorch-metric-learning draws from the same seed.
    """
    keys, order = ref_labels.sort()
    first = torch.searchsorted(keys, labels)
    last = torch.searchsorted(keys, labels, right=True)
    positives, negatives = last - first - int(own is not None), len(keys) - (last - first)
    a = torch.where((positives > 0) & (negatives > 0))[0].repeat_interleave(count)
    draw_p, draw_n = (
        (torch.rand(len(a), device=a.device, dtype=torch.float64) * size[a]).long()
        for size in (positives, negatives)
    )
    if own is not None:  # the anchor's own place among the rows of its class is left out
        place = order.argsort()[a + own] - first[a]
        draw_p += draw_p >= place
    draw_n += torch.where(draw_n >= first[a], last[a] - first[a], 0)
    return a, order[first[a] + draw_p], order[draw_n]


def nt_xent(x: Tensor, others: Tensor, scale: Tensor | float, indices: Pairs, unit: bool) -> Tensor:
    """Losses of the positive pairs, each against its anchor's negative pairs."""
    with full_precision(x):
        s = scale * _products(x, others, unit)
        negatives = s[indices.a2, indices.n]
        none = s.new_full((len(x),), -torch.inf)
        largest = none.scatter_reduce(0, indices.a2, negatives.detach(), "amax")
        largest = largest.where(largest > -torch.inf, 0)
        sums = torch.zeros_like(none).index_add(0, indices.a2, (negatives - largest[indices.a2]).exp())
        log_sum = (sums.where(sums > 0, 1).log() + largest).where(sums > 0, -torch.inf)
        return F.softplus(log_sum[indices.a1] - s[indices.a1, indices.p])


def supcon(x: Tensor, others: Tensor, scale: Tensor | float, indices: Pairs, unit: bool) -> Tensor:
    """(N,) losses: the mean over a row's positive pairs, of a softmax over all its pairs; 0 without one."""
    with full_precision(x):
        s = scale * _products(x, others, unit)
        positive, negative = torch.zeros_like(s, dtype=torch.bool), torch.zeros_like(s, dtype=torch.bool)
        positive[indices.a1, indices.p] = True
        negative[indices.a2, indices.n] = True
        if checks.readable(positive) and bool((positive & negative).any()):
            raise ThawkitError("indices_tuple must not name a pair both positive and negative")
        count = positive.sum(1)
        anchor = (count > 0)[:, None]
        log_p = s.masked_fill(~(positive | negative) & anchor, -torch.inf).log_softmax(1)
        rows = -log_p.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
        return rows.where(count > 0, 0)


def _products(x: Tensor, others: Tensor, unit: bool) -> Tensor:
    x, others = (F.normalize(lifted(y), dim=1) if unit else lifted(y) for y in (x, others))
    return product(x, others.t())


class Violation(NamedTuple):
    """How much a triplet's margin is violated by; ``factor`` is that of the distances."""

    margin: Tensor | float
    swap: bool
    smooth: bool
    distance: str
    factor: float

    def distances(self, x: Tensor, others: Tensor) -> Tensor:
        """(N, M) distances."""
        return self.factor * distances(lifted(x), lifted(others), self.distance)

    def losses(self, ap: Tensor, an: Tensor, pn: Tensor) -> Tensor:
        """Losses of distances anchor to positive, anchor to negative, positive to negative."""
        violation = ap - (torch.minimum(an, pn) if self.swap else an) + self.margin
        return F.softplus(violation) if self.smooth else violation.relu()


def triplet_margin(
    x: Tensor, others: Tensor, indices: tuple[Tensor, Tensor, Tensor], violation: Violation
) -> Tensor:
    """Losses of triplets."""
    a, p, n = indices
    with full_precision(x):
        d = violation.distances(x, others)
        return violation.losses(d[a, p], d[a, n], d[p, n] if violation.swap else d[a, n])


def all_triplets(
    x: Tensor, others: Tensor, labels: Tensor, ref_labels: Tensor, own: int | None, violation: Violation
) -> tuple[Tensor, Tensor]:
    """Sums of the losses of each anchor's triplets, and how many of them are above 0."""
    with full_precision(x):
        d = violation.distances(x, others)
        sums, active = 0 * lifted(x).sum(1), torch.zeros_like(labels, dtype=torch.int64)

        def block(d: Tensor, rows: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            mine = d.index_select(0, rows)
            ap, an = mine.index_select(1, p), mine.index_select(1, n)[:, None]
            pn = d.index_select(0, p).index_select(1, n)[None] if violation.swap else an
            losses = violation.losses(ap[:, :, None], an, pn)
            if own is not None:
                losses = losses.masked_fill((rows[:, None] + own == p)[:, :, None], 0)
            return losses.sum((1, 2)), (losses > 0).sum((1, 2))

        for rows, p, n in _blocks(labels, ref_labels):
            if len(x) * len(p) * len(n) <= _AT_ONCE:
                losses, some = block(d, rows, p, n)
            else:  # kept in memory for one block only, and computed again for the gradients
                losses, some = checkpoint(block, d, rows, p, n, use_reentrant=False)
            sums, active = sums.index_add(0, rows, losses), active.index_add(0, rows, some)
        return sums, active


def _blocks(labels: Tensor, ref_labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Anchors of one class, a few at once, and the indices of all positives and all negatives."""
    for label in labels.unique():
        rows, p, n = (
            torch.where(same)[0] for same in (labels == label, ref_labels == label, ref_labels != label)
        )
        if len(p) and len(n):
            for part in rows.split(max(1, _AT_ONCE // (len(p) * len(n)))):
                yield part, p, n
