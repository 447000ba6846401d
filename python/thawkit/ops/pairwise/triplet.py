"""The triplet loss: checks."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.pairwise.common import DISTANCES
from thawkit.ops.pairwise.margin import margin_loss
from thawkit.ops.pairwise.ref import check_ref

MININGS = ("all", "hard", "semihard")
REDUCTIONS = ("none", "mean", "mean_nonzero", "sum")


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    margin: Tensor | float,
    *,
    mining: str = "all",
    distance: str = "euclidean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Triplet margin loss of labelled rows, each an anchor (Schroff et al. 2015, Hermans et al. 2017).

    Args:
        embeddings: (N, D) anchors.
        labels: (N,) integers.
        margin: a number, or a tensor of one element, which gets a gradient.
        mining: ``all`` triplets, the ``hard``-est of each anchor, or one ``semihard`` of each positive pair.
        distance: ``euclidean`` or ``cosine``.
        ref: (M, D) rows of the same dtype to take positives and negatives from; else ``embeddings``.
        ref_labels: (M,) integers, with ``ref``.
        reduction: ``none`` gives (N,) sums over each anchor's triplets, ``mean`` is over all triplets mined,
            ``mean_nonzero`` over those with a loss above 0.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, an unknown name, or there is nothing to
            take the mean of.
    """
    checks.matrix("embeddings", embeddings)
    checks.labels("labels", labels, "embeddings", embeddings)
    margin = checks.one_number("margin", margin, embeddings)
    checks.one_of("mining", mining, MININGS)
    checks.one_of("distance", distance, DISTANCES)
    check_ref(embeddings, ref, ref_labels)
    checks.reduced("embeddings", embeddings.shape[0], reduction, REDUCTIONS)
    return margin_loss(
        "triplet_margin", embeddings, ref, margin, None, labels, ref_labels,
        kind=mining, distance=distance, reduction=reduction,
    )  # fmt: skip
