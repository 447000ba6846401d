"""Stand-ins for losses of pytorch-metric-learning 2 (``pytorch_metric_learning.losses``).

They take its distances and reducers where these have a counterpart here, and refuse all others with an error:

- distances: ``CosineSimilarity``, ``DotProductSimilarity`` and ``LpDistance``, the latter of p = 2. In
  NTXentLoss and SupConLoss an ``LpDistance`` is one of unit rows with power 2, a similarity but for a
  constant; in TripletMarginLoss similarities are of unit rows.
- reducers: ``MeanReducer``, ``SumReducer``, ``AvgNonZeroReducer``, ``ThresholdReducer``,
  ``ClassWeightedReducer`` and, but for triplets, ``PerAnchorReducer``. Among the pairs of NTXentLoss and the
  triplets of TripletMarginLoss a threshold is 0, from below.
- no pairs or triplets from a miner (``indices_tuple``), no regularizers, no statistics.

One value differs: in float32 no pair of pytorch-metric-learning's NTXentLoss costs more than 87, nor has a
gradient there, since the smallest float is added to what the logarithm is taken of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.presets.metric_learning_options import (
    above_zero,
    check_reducer,
    kind_of,
    reduced_rows,
    reduced_tuples,
    similarity,
    triplet_distance,
)
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks
from thawkit.ops.pairwise.ref import common_classes


class _Batch(NamedTuple):
    """Anchors, and what they are compared with; ``own`` as in :func:`thawkit.losses.functional.supcon`."""

    embeddings: Tensor
    labels: Tensor
    ref: Tensor | None
    ref_labels: Tensor | None
    own: int | None

    def counts(self) -> tuple[Tensor, Tensor]:
        """Return the numbers of positives and negatives of each anchor."""
        mine, theirs = common_classes(self.labels, self.ref_labels)
        same = torch.zeros(len(mine) + len(theirs), dtype=torch.int64, device=mine.device)
        same = same.index_add(0, theirs, torch.ones_like(theirs))[mine]
        itself = self.ref is None or self.own is not None
        return same - int(itself), len(theirs) - same


class _Loss(nn.Module):
    """What the losses share: arguments without a counterpart, and what a row is compared with."""

    def __init__(
        self,
        distance: Any,
        reducer: Any,
        embedding_regularizer: Any,
        embedding_reg_weight: float,
        collect_stats: bool | None,
    ):
        super().__init__()
        only(None, embedding_regularizer=embedding_regularizer)
        only(None, collect_stats=collect_stats or None)
        self.distance = distance
        self.reducer = reducer
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight
        self.collect_stats = collect_stats

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) of the classes ``labels`` (N,).

        Positives and negatives come from ``ref_emb`` (M, D) of the classes ``ref_labels`` (M,) where given.
        If ``ref_labels`` is left out or is the very tensor ``labels``, rows i of both are left out as a pair.
        """
        only(None, indices_tuple=indices_tuple)
        checks.matrix("embeddings", embeddings)
        if not isinstance(labels, Tensor):
            raise ThawkitError(f"labels must be a tensor, got {type(labels).__name__}")
        labels = labels.to(embeddings.device)
        own = None
        if ref_emb is not None:
            ref_labels = labels if ref_labels is None else ref_labels.to(embeddings.device)
            own = 0 if ref_labels is labels else None
        else:
            ref_labels = None
        checks.labels("labels", labels, "embeddings", embeddings)
        return self._loss(_Batch(embeddings, labels, ref_emb, ref_labels, own))

    def _loss(self, batch: _Batch) -> Tensor:
        raise NotImplementedError


class NTXentLoss(_Loss):
    """pytorch-metric-learning's ``NTXentLoss``; see :func:`thawkit.losses.functional.nt_xent_labels`.

    Args:
        temperature: divides the similarities; a parameter is learned with the model.
        distance: None is ``CosineSimilarity``.
        reducer: None is ``MeanReducer``, over all pairs.
        embedding_regularizer: None.
        embedding_reg_weight: without effect.
        collect_stats: None or False.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.07,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ):
        super().__init__(distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats)
        checks.positive_scalar("temperature", temperature)
        self.temperature = temperature
        self._unit, self._factor = similarity(distance)
        check_reducer(reducer, "MeanReducer", ("PerAnchorReducer",))

    def _loss(self, batch: _Batch) -> Tensor:
        positives, negatives = batch.counts()

        def loss(reduction: str) -> Tensor:
            return F.nt_xent_labels(
                batch.embeddings,
                batch.labels,
                temperature=self.temperature / self._factor,
                normalize=self._unit,
                reduction=reduction,
                ref=batch.ref,
                ref_labels=batch.ref_labels,
                own=batch.own,
            )

        value = reduced_tuples(self.reducer, "MeanReducer", loss, positives, batch.labels)
        return value.where(_enough_pairs(positives, negatives), 0)


class SupConLoss(_Loss):
    """pytorch-metric-learning's ``SupConLoss``; see :func:`thawkit.losses.functional.supcon`.

    Args:
        temperature: divides the similarities; a parameter is learned with the model.
        distance: None is ``CosineSimilarity``.
        reducer: None is ``AvgNonZeroReducer``, over the rows that have a positive.
        embedding_regularizer: None.
        embedding_reg_weight: without effect.
        collect_stats: None or False.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.1,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ):
        super().__init__(distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats)
        checks.positive_scalar("temperature", temperature)
        self.temperature = temperature
        self._unit, self._factor = similarity(distance)
        check_reducer(reducer, "AvgNonZeroReducer", ("PerAnchorReducer",), thresholds=True)

    def _loss(self, batch: _Batch) -> Tensor:
        def loss(reduction: str) -> Tensor:
            return F.supcon(
                batch.embeddings,
                batch.labels,
                temperature=self.temperature / self._factor,
                normalize=self._unit,
                reduction=reduction,
                ref=batch.ref,
                ref_labels=batch.ref_labels,
                own=batch.own,
            )

        reducer, kind = self.reducer, kind_of(self.reducer, "AvgNonZeroReducer")
        if kind == "PerAnchorReducer":  # there is one loss an anchor
            reducer, kind = reducer.reducer, kind_of(reducer.reducer, "MeanReducer")
        if above_zero(reducer, kind):
            value = loss("mean")  # a row without a positive has loss 0
        elif kind in ("SumReducer", "MeanReducer"):
            value = loss("sum") / (1 if kind == "SumReducer" else len(batch.labels))
        else:
            value = reduced_rows(reducer, kind, loss("none"), batch.labels)
        return value.where(_enough_pairs(*batch.counts()), 0)


class TripletMarginLoss(_Loss):
    """pytorch-metric-learning's ``TripletMarginLoss``; see :func:`thawkit.losses.functional.triplet_margin`.

    Args:
        margin: how much nearer positives are to be than negatives.
        swap: False.
        smooth_loss: False.
        triplets_per_anchor: ``all``.
        distance: None is ``LpDistance``, of unit rows.
        reducer: None is ``AvgNonZeroReducer``, over the triplets that cost anything.
        embedding_regularizer: None.
        embedding_reg_weight: without effect.
        collect_stats: None or False.
    """

    def __init__(
        self,
        margin: Tensor | float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: str | int = "all",
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ):
        super().__init__(distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats)
        checks.scalar("margin", margin)
        only(False, swap=swap)
        only(False, smooth_loss=smooth_loss)
        only("all", triplets_per_anchor=triplets_per_anchor)
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        self.triplets_per_anchor = triplets_per_anchor
        self._distance, self._unit, self._factor = triplet_distance(distance)
        check_reducer(reducer, "AvgNonZeroReducer", ())

    def _loss(self, batch: _Batch) -> Tensor:
        if batch.own is not None:
            raise ThawkitError(
                "ref_labels must be given and not be labels itself, which leaves the pairs of rows i out; "
                "pass ref_labels=labels.clone() to keep them"
            )
        x, ref = batch.embeddings, batch.ref
        if self._unit:
            x, ref = normalize(x, dim=1), None if ref is None else normalize(ref, dim=1)

        def loss(reduction: str) -> Tensor:
            value = F.triplet_margin(
                x,
                batch.labels,
                margin=self.margin / self._factor,
                distance=self._distance,
                ref=ref,
                ref_labels=batch.ref_labels,
                reduction=reduction,
            )
            return self._factor * value

        positives, negatives = batch.counts()
        return reduced_tuples(self.reducer, "AvgNonZeroReducer", loss, positives * negatives, batch.labels)


def _enough_pairs(positives: Tensor, negatives: Tensor) -> Tensor:
    """Where pytorch-metric-learning computes a loss of pairs at all; else it is 0."""
    p, n = positives.sum(), negatives.sum()
    return (p > 0) & (n > 0) & ((p > 1) | (n > 1))
