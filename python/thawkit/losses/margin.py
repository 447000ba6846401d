"""Losses on distances with margins, as modules."""

from __future__ import annotations

from torch import Tensor

from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.ops import checks
from thawkit.ops.pairwise.common import DISTANCES
from thawkit.ops.pairwise.triplet import MININGS, REDUCTIONS


class TripletMarginLoss(Loss):
    """Triplet loss, mined within the batch; see :func:`thawkit.losses.functional.triplet_margin`.

    Args:
        margin: how much nearer positives are to be than negatives.
        mining: ``all`` triplets, the ``hard``-est of each anchor, or one ``semihard`` of each positive pair.
        distance: ``euclidean`` or ``cosine``.
        reduction: ``none``, ``mean``, ``mean_nonzero`` or ``sum``.
    """

    def __init__(
        self,
        margin: Tensor | float = 0.2,
        mining: str = "all",
        distance: str = "euclidean",
        reduction: str = "mean",
    ):
        super().__init__()
        checks.scalar("margin", margin)
        checks.one_of("mining", mining, MININGS)
        checks.one_of("reduction", reduction, REDUCTIONS)
        checks.one_of("distance", distance, DISTANCES)
        self.margin = margin
        self.mining = mining
        self.distance = distance
        self.reduction = reduction

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) of the classes ``labels`` (N,).

        Positives and negatives come from ``ref`` (M, D) of the classes ``ref_labels`` (M,) where given.
        """
        return F.triplet_margin(
            embeddings,
            labels,
            margin=self.margin,
            mining=self.mining,
            distance=self.distance,
            ref=ref,
            ref_labels=ref_labels,
            reduction=self.reduction,
        )


class ContrastiveLoss(Loss):
    """Contrastive loss of all labelled pairs; see :func:`thawkit.losses.functional.contrastive`.

    Args:
        positive_margin: distance up to which rows of one label may stay apart.
        negative_margin: distance from which rows of different labels are left alone.
        distance: ``euclidean`` or ``cosine``.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    def __init__(
        self,
        positive_margin: Tensor | float = 0.0,
        negative_margin: Tensor | float = 1.0,
        distance: str = "euclidean",
        reduction: str = "mean",
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.scalar("positive_margin", positive_margin)
        checks.scalar("negative_margin", negative_margin)
        checks.one_of("distance", distance, DISTANCES)
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.distance = distance
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) of the classes ``labels`` (N,)."""
        return F.contrastive(
            embeddings,
            labels,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            distance=self.distance,
            reduction=self.reduction,
        )


class CosineContrastiveLoss(Loss):
    """Cosine loss of given pairs; see :func:`thawkit.losses.functional.cosine_contrastive`.

    Args:
        margin: cosine up to which pairs that do not belong together cost nothing.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    def __init__(self, margin: Tensor | float = 0.0, reduction: str = "mean"):
        super().__init__()
        checks.scalar("margin", margin)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.margin = margin
        self.reduction = reduction

    def forward(self, x1: Tensor, x2: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the pairs ``x1``, ``x2``, both (N, D); ``target`` (N,) is 1 or -1."""
        return F.cosine_contrastive(x1, x2, target, margin=self.margin, reduction=self.reduction)
