"""What the softmax losses are made of, in both modes."""

from __future__ import annotations

import math

from torch import Tensor

from thawkit.losses.distributed.exchange import gather
from thawkit.losses.distributed.ranks import Rows
from thawkit.losses.distributed.ring import row_terms
from thawkit.losses.distributed.terms import Keys, Turn, Weight, log_sum_exp, weighted
from thawkit.ops.pairwise.negatives import row_logits, with_further
from thawkit.ops.pairwise.row_softmax import Columns, row_softmax


def over_all_keys(
    q: Tensor,
    keys: Tensor,
    scale: Tensor,
    turn: Turn,
    weights: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Return each term for each query over the keys of all ranks, or their sums with given weights."""
    if turn.rows.ranks.mode == "gather":
        labels = None if turn.labels is None else gather(turn.labels, turn.rows)
        every = Keys(gather(keys, turn.rows), labels, turn.rows.before)
        return tuple(
            term.of(q, every, (scale,), weight)
            for term, weight in zip(turn.terms, weights or [None] * len(turn.terms), strict=True)
        )
    found = row_terms(q, keys, (scale,), turn)
    if weights is None:
        return found
    return tuple((x.where(w != 0, 0) * w).sum() for x, w in zip(found, weights, strict=True))


def cross_entropy(
    q: Tensor,
    keys: Tensor,
    scale: Tensor,
    rows: Rows,
    *,
    normalize: bool,
    weight: Weight,
    partner: Tensor | None = None,
    others: bool = False,
    labels: Tensor | None = None,
    margin: float = math.inf,
) -> Tensor:
    """Softmax cross-entropy of the rank's queries over the keys of all ranks.

    Args:
        q: (N, D).
        keys: (M, D) of this rank.
        scale: scalar tensor.
        rows: how many keys each rank has.
        normalize: divide each row by its Euclidean norm first.
        weight: factor of the rows' sum, one or (N,); None: no sum, but (N,) losses.
        partner: (N,) which of the rank's keys is a query's positive; None: the i-th.
        others: leave the i-th of the rank's keys, which is query i itself, out of row i.
        labels: (M,) int32 classes of the rank's keys: those of a query's class count only as its positive.
        margin: leave keys out whose similarity is above the positive's by more than this (``gather`` only).
    """
    row_labels = None if labels is None else labels[: q.shape[0]]
    rule = "ignored" if labels is None else "drop same"

    def over(keys: Tensor, key_labels: Tensor | None, start: int, weight: Weight) -> Tensor:
        return row_softmax(
            q,
            keys,
            scale,
            target=None if partner is None else partner + start,
            row_labels=row_labels,
            key_labels=key_labels,
            columns=Columns(start, start if others else None, rule, margin),
            normalize=normalize,
            **weighted(weight),
        )

    if rows.ranks.mode == "gather":
        every = None if labels is None else gather(labels, rows)
        return over(gather(keys, rows), every, rows.before, weight)
    further = log_sum_exp(normalize, row_labels=row_labels, labels=rule)
    log_sum = row_terms(q, keys, (scale,), Turn(rows, (further,), labels, with_own=False))[0]
    own = keys[: q.shape[0]] if partner is None else keys[partner]
    positive = row_logits(q, own[:, None], scale, normalize).squeeze(1)
    loss = with_further(over(keys, labels, 0, None), positive, log_sum)
    return loss if weight is None else (loss * weight).sum()
