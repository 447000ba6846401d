"""Parts of losses that can be computed from some of the keys at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.losses.distributed.ranks import Rows
from thawkit.ops.pairwise.row_softmax import Columns, row_softmax

Weight = Tensor | float | None


class Keys(NamedTuple):
    """Some of the keys of all ranks.

    Attributes:
        rows: (M, D).
        labels: (M,) or (M, L), where there are some.
        own: where the keys of the rank's own rows begin among them; None: they are elsewhere.
    """

    rows: Tensor
    labels: Tensor | None
    own: int | None


@dataclass(frozen=True)
class Term:
    """A part of a loss that can be computed from some of the keys at a time.

    Attributes:
        of: takes the queries, some keys, the scalars (scale, bias) and a weight: returns a number for each
            query or, where there is a weight, (N,) or one for all, their weighted sum.
        log_sum: the numbers are log-sum-exps over the keys; else they are sums.
    """

    of: Callable[[Tensor, Keys, tuple[Tensor, ...], Weight], Tensor]
    log_sum: bool


@dataclass(frozen=True)
class Turn:
    """What goes with the keys of all ranks, and what is computed from them.

    Attributes:
        rows: how many keys each rank has.
        terms: what is computed.
        labels: (M,) or (M, L), of the rank's own keys.
        with_own: whether a rank's own keys count.
    """

    rows: Rows
    terms: tuple[Term, ...]
    labels: Tensor | None = None
    with_own: bool = True


def log_sum_exp(
    normalize: bool,
    *,
    times: float = 1.0,
    others: bool = False,
    row_labels: Tensor | None = None,
    labels: str = "ignored",
) -> Term:
    """Return the log-sum-exp of each query's logits, which are ``times`` the scale times the similarities.

    Args:
        normalize: divide each row by its Euclidean norm first.
        times: factor of the scale.
        others: leave the key of a query's own row out.
        row_labels: (N,) int32 classes of the queries, and
        labels: which keys count by their class, as in :class:`thawkit.ops.pairwise.row_softmax.Columns`.
    """

    def of(q: Tensor, keys: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
        return row_softmax(
            q,
            keys.rows,
            times * scalars[0],
            target=torch.full((q.shape[0],), -1, device=q.device),
            row_labels=row_labels,
            key_labels=None if row_labels is None else keys.labels,
            columns=Columns(excluded=keys.own if others else None, labels=labels),
            normalize=normalize,
            **weighted(weight),
        )

    return Term(of, log_sum=True)


def weighted(weight: Weight) -> dict[str, Any]:
    """Return the row softmax's arguments for numbers of the rows, or for a weighted sum of them."""
    if weight is None:
        return {"reduce": False}
    return {"row_weight": weight} if isinstance(weight, Tensor) else {"weight": weight}
