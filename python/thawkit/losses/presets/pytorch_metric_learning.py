"""Stand-ins for losses of pytorch-metric-learning 2 (``pytorch_metric_learning.losses``).

They take its distances and reducers where these have a counterpart here, and refuse all others with an error:

- distances: ``CosineSimilarity``, ``DotProductSimilarity`` and ``LpDistance``, the latter of p = 2. In
  NTXentLoss and SupConLoss an ``LpDistance`` is one of unit rows with power 2, a similarity but for a
  constant; in TripletMarginLoss similarities are of unit rows.
- reducers: ``MeanReducer``, ``SumReducer``, ``AvgNonZeroReducer``, ``ThresholdReducer``,
  ``ClassWeightedReducer`` and, but for triplets, ``PerAnchorReducer``. Among the pairs of NTXentLoss and the
  triplets of TripletMarginLoss a threshold is 0, from below.
- pairs or triplets from a miner (``indices_tuple``) in plain torch, by the matrix of similarities; not with
  ``PerAnchorReducer`` in NTXentLoss.
- no regularizers, no statistics.

Some values differ: in float32 no pair of pytorch-metric-learning's NTXentLoss costs more than 87, nor has a
gradient there, since the smallest float is added to what the logarithm is taken of; and a pair that costs
less than 6e-8 costs nothing there. A reducer that averages over what is not 0, as SupConLoss's own one does,
then divides by a smaller number there: at temperatures of a few hundredths the mean of a nearly solved batch
can be several times ours. A row of zeros is 1 away from a unit row there, in squared distance, and 2 here.
``triplets_per_anchor`` draws other triplets from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.presets import metric_learning_tuples as tuples
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
from thawkit.ops.pairwise.common import lifted, reduced_over
from thawkit.ops.pairwise.ref import check_ref_rows, common_classes


class _Batch(NamedTuple):
    """Anchors, and what they are compared with; ``own`` as in :func:`thawkit.losses.functional.supcon`."""

    embeddings: Tensor
    labels: Tensor
    ref: Tensor | None
    ref_labels: Tensor | None
    own: int | None

    @property
    def others(self) -> tuple[Tensor, Tensor, int | None]:
        """The rows that the anchors are compared with, their labels, and where the anchors are in them."""
        if self.ref is None or self.ref_labels is None:
            return self.embeddings, self.labels, 0
        return self.ref, self.ref_labels, self.own

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
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) of the classes ``labels`` (N,).

        Positives and negatives come from ``ref_emb`` (M, D) of the classes ``ref_labels`` (M,) where given.
        If ``ref_labels`` is left out or is the very tensor ``labels``, rows i of both are left out as a pair.

        ``indices_tuple`` chooses among the pairs or triplets: (anchors, positives, negatives), or (anchors,
        positives, anchors, negatives) of two lists of pairs. Then labels may be left out.
        """
        self._check_parts()
        checks.matrix("embeddings", embeddings)
        if ref_emb is not None:
            check_ref_rows(embeddings, ref_emb, "ref_emb")
            if ref_labels is not None:
                checks.labels("ref_labels", ref_labels, "ref_emb", ref_emb)
            elif isinstance(labels, Tensor):
                checks.labels("labels", labels, "ref_emb", ref_emb)
        if isinstance(labels, Tensor):
            labels = labels.to(embeddings.device)
            checks.labels("labels", labels, "embeddings", embeddings)
        elif labels is not None or indices_tuple is None:
            raise ThawkitError(f"labels must be a tensor, got {type(labels).__name__}")
        if indices_tuple is not None:
            others = embeddings if ref_emb is None else ref_emb
            return self._chosen(embeddings, others, tuples.chosen(indices_tuple, embeddings, others), labels)
        assert labels is not None
        own = None
        if ref_emb is not None:
            ref_labels = labels if ref_labels is None else ref_labels.to(embeddings.device)
            own = 0 if ref_labels is labels else None
        else:
            ref_labels = None
        return self._loss(_Batch(embeddings, labels, ref_emb, ref_labels, own))

    def _check_parts(self) -> None:
        """Require a distance and a reducer that have counterparts; either may be replaced at any time."""
        raise NotImplementedError

    def _loss(self, batch: _Batch) -> Tensor:
        raise NotImplementedError

    def _chosen(
        self, embeddings: Tensor, others: Tensor, indices: tuple[Tensor, ...], labels: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def _reduced(self, losses: Tensor, anchors: Tensor, default: str, labels: Tensor | None) -> Tensor:
        """Reduce the losses of chosen pairs, triplets or rows."""
        kind = kind_of(self.reducer, default)
        if kind == "PerAnchorReducer":
            raise ThawkitError("reducer must not be PerAnchorReducer where indices_tuple is given")
        if labels is None:
            if kind == "ClassWeightedReducer":
                raise ThawkitError("labels must be given for a ClassWeightedReducer, got None")
            labels = torch.zeros_like(losses, dtype=torch.int64)
        else:
            labels = labels[anchors]
        return reduced_rows(self.reducer, kind, losses, labels)


class _OfSimilarities(_Loss):
    """Losses with a softmax over similarities, chosen pairs being positives and negatives."""

    def __init__(self, temperature: Tensor | float, distance: Any, *options: Any):
        super().__init__(distance, *options)
        checks.positive_scalar("temperature", temperature)
        self.temperature = temperature
        self._check_parts()

    def _arguments(self, batch: _Batch) -> dict[str, Any]:
        unit, factor = similarity(self.distance)
        return {**batch._asdict(), "temperature": self.temperature / factor, "normalize": unit}

    def _chosen(
        self, embeddings: Tensor, others: Tensor, indices: tuple[Tensor, ...], labels: Tensor | None
    ) -> Tensor:
        pairs = tuples.pairs(indices)
        if not (len(pairs.a1) and len(pairs.a2) and max(len(pairs.a1), len(pairs.a2)) > 1):
            return lifted(embeddings).sum() * 0
        return self._of_pairs(embeddings, others, pairs, labels)

    def _of_pairs(
        self, embeddings: Tensor, others: Tensor, pairs: tuples.Pairs, labels: Tensor | None
    ) -> Tensor:
        raise NotImplementedError


class NTXentLoss(_OfSimilarities):
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
        super().__init__(
            temperature, distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats
        )

    def _check_parts(self) -> None:
        similarity(self.distance)
        check_reducer(self.reducer, "MeanReducer", ("PerAnchorReducer",))

    def _loss(self, batch: _Batch) -> Tensor:
        positives, negatives = batch.counts()

        def loss(reduction: str) -> Tensor:
            return F.nt_xent_labels(**self._arguments(batch), reduction=reduction)

        value = reduced_tuples(self.reducer, "MeanReducer", loss, positives, batch.labels)
        return value.where(_enough_pairs(positives, negatives), 0)

    def _of_pairs(
        self, embeddings: Tensor, others: Tensor, pairs: tuples.Pairs, labels: Tensor | None
    ) -> Tensor:
        unit, factor = similarity(self.distance)
        losses = tuples.nt_xent(embeddings, others, factor / self.temperature, pairs, unit)
        return self._reduced(losses, pairs.a1, "MeanReducer", labels)


class SupConLoss(_OfSimilarities):
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
        super().__init__(
            temperature, distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats
        )

    def _check_parts(self) -> None:
        similarity(self.distance)
        check_reducer(self.reducer, "AvgNonZeroReducer", ("PerAnchorReducer",), thresholds=True)

    def _loss(self, batch: _Batch) -> Tensor:
        def loss(reduction: str) -> Tensor:
            return F.supcon(**self._arguments(batch), reduction=reduction)

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

    def _of_pairs(
        self, embeddings: Tensor, others: Tensor, pairs: tuples.Pairs, labels: Tensor | None
    ) -> Tensor:
        unit, factor = similarity(self.distance)
        rows = tuples.supcon(embeddings, others, factor / self.temperature, pairs, unit)
        return self._reduced(rows, torch.arange(len(rows), device=rows.device), "AvgNonZeroReducer", labels)


class TripletMarginLoss(_Loss):
    """pytorch-metric-learning's ``TripletMarginLoss``; see :func:`thawkit.losses.functional.triplet_margin`.

    Args:
        margin: how much nearer positives are to be than negatives.
        swap: count the negative's distance to the positive instead of the anchor, where it is less; of the
            embeddings themselves only.
        smooth_loss: softplus in place of the hinge.
        triplets_per_anchor: ``all``, or how many are drawn at random.
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
        if triplets_per_anchor != "all" and not (
            isinstance(triplets_per_anchor, int) and triplets_per_anchor > 0
        ):
            raise ThawkitError(f"triplets_per_anchor must be 'all' or above 0, got {triplets_per_anchor!r}")
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        self.triplets_per_anchor = triplets_per_anchor
        self._check_parts()

    def _check_parts(self) -> None:
        triplet_distance(self.distance)
        check_reducer(self.reducer, "AvgNonZeroReducer", ())

    def _loss(self, batch: _Batch) -> Tensor:
        others, ref_labels, own = batch.others
        self._check_swap(batch.embeddings, others)
        if self.triplets_per_anchor != "all":
            assert isinstance(self.triplets_per_anchor, int)
            drawn = tuples.random_triplets(batch.labels, ref_labels, own, self.triplets_per_anchor)
            return self._chosen(batch.embeddings, others, drawn, batch.labels)
        positives, negatives = batch.counts()
        count = positives * negatives
        plain = not (self.swap or self.smooth_loss) and batch.own is None
        loss = self._on_the_engine(batch) if plain else self._one_by_one(batch, count)
        return reduced_tuples(self.reducer, "AvgNonZeroReducer", loss, count, batch.labels)

    def _on_the_engine(self, batch: _Batch) -> Callable[[str], Tensor]:
        x, ref = batch.embeddings, batch.ref
        distance, unit, factor = triplet_distance(self.distance)
        if unit:
            x, ref = normalize(x, dim=1), None if ref is None else normalize(ref, dim=1)

        def loss(reduction: str) -> Tensor:
            value = F.triplet_margin(
                x,
                batch.labels,
                margin=self.margin / factor,
                distance=distance,
                ref=ref,
                ref_labels=batch.ref_labels,
                reduction=reduction,
            )
            return factor * value

        return loss

    def _one_by_one(self, batch: _Batch, count: Tensor) -> Callable[[str], Tensor]:
        x, (others, ref_labels, own) = batch.embeddings, batch.others
        sums, active = tuples.all_triplets(
            *self._rows(x, others), batch.labels, ref_labels, own, self._violation()
        )

        def loss(reduction: str) -> Tensor:
            return reduced_over(sums, reduction, (active if reduction == "mean_nonzero" else count).sum())

        return loss

    def _chosen(
        self, embeddings: Tensor, others: Tensor, indices: tuple[Tensor, ...], labels: Tensor | None
    ) -> Tensor:
        self._check_swap(embeddings, others)
        a, p, n = tuples.triplets(indices)
        if not len(a):
            return lifted(embeddings).sum() * 0
        losses = tuples.triplet_margin(*self._rows(embeddings, others), (a, p, n), self._violation())
        return self._reduced(losses, a, "AvgNonZeroReducer", labels)

    def _violation(self) -> tuples.Violation:
        distance, _, factor = triplet_distance(self.distance)
        return tuples.Violation(self.margin, self.swap, self.smooth_loss, distance, factor)

    def _rows(self, x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        if not triplet_distance(self.distance)[1]:
            return x, others
        unit = normalize(lifted(x), dim=1)
        return unit, unit if others is x else normalize(lifted(others), dim=1)

    def _check_swap(self, x: Tensor, others: Tensor) -> None:
        if self.swap and others is not x:
            raise ThawkitError("swap=True must come without ref_emb, whose rows it has no distances of")


def _enough_pairs(positives: Tensor, negatives: Tensor) -> Tensor:
    """Where pytorch-metric-learning computes a loss of pairs at all; else it is 0."""
    p, n = positives.sum(), negatives.sum()
    return (p > 0) & (n > 0) & ((p > 1) | (n > 1))
