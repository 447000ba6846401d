"""The contrastive losses of pairs, all labelled ones or given ones: checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import DISTANCES, full_precision, lifted, reduced
from thawkit.ops.pairwise.margin import margin_loss


def contrastive(
    embeddings: Tensor,
    labels: Tensor,
    positive_margin: Tensor | float,
    negative_margin: Tensor | float,
    *,
    distance: str = "euclidean",
    reduction: str = "mean",
) -> Tensor:
    """Contrastive loss of all pairs of labelled rows (Hadsell et al. 2006).

    Args:
        embeddings: (N, D).
        labels: (N,) integers.
        positive_margin: distance up to which a pair of one class costs nothing; a number, or a tensor of one
            element, which gets a gradient.
        negative_margin: distance from which a pair of two classes costs nothing, likewise.
        distance: ``euclidean`` or ``cosine``.
        reduction: ``none`` gives (N,) halves of the sums of each row's pairs, ``sum`` the sum over all
            N (N - 1) / 2 pairs, ``mean`` their mean, 0 where there is no pair.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, an unknown name, or there are no rows to
            take the mean of.
    """
    checks.matrix("embeddings", embeddings)
    checks.labels("labels", labels, "embeddings", embeddings)
    positive_margin = checks.one_number("positive_margin", positive_margin, embeddings)
    negative_margin = checks.one_number("negative_margin", negative_margin, embeddings)
    checks.one_of("distance", distance, DISTANCES)
    checks.reduced("embeddings", embeddings.shape[0], reduction)
    return margin_loss(
        "contrastive", embeddings, None, positive_margin, negative_margin, labels, None,
        kind="contrastive", distance=distance, reduction=reduction,
    )  # fmt: skip


def cosine_contrastive(
    x1: Tensor, x2: Tensor, target: Tensor, margin: Tensor | float, *, reduction: str = "mean"
) -> Tensor:
    """Cosine loss of given pairs, as :class:`torch.nn.CosineEmbeddingLoss` has it.

    Args:
        x1: (N, D).
        x2: (N, D) of the same dtype.
        target: (N,), 1 for pairs that belong together, -1 for others.
        margin: cosine up to which the others cost nothing; a number, or a tensor of one element, which gets a
            gradient.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or targets do not fit, or there is nothing to take the mean of.
    """
    checks.matrix("x1", x1)
    checks.twin("x2", x2, "x1", x1)
    _check_target(target, x1)
    margin = checks.one_number("margin", margin, x1)
    checks.reduced("x1", x1.shape[0], reduction)
    choose("cosine_contrastive", {}, x1, x2)
    with full_precision(x1):
        rows = reference.cosine_contrastive(lifted(x1), lifted(x2), target, margin)
        return reduced(rows, reduction)


def _check_target(target: Tensor, x1: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise ThawkitError(f"target must be a tensor, got {type(target).__name__}")
    if target.dtype == torch.bool or target.is_complex():
        raise ThawkitError(f"target must hold 1 and -1, got {target.dtype}")
    if target.shape != x1.shape[:1]:
        raise ThawkitError(f"target must have shape ({x1.shape[0]},), got {tuple(target.shape)}")
    checks.same_device("target", target, "x1", x1)
    if checks.readable(target) and not bool((target.abs() == 1).all()):
        raise ThawkitError("target must hold 1 and -1 only")
