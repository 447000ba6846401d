"""Losses on distances with margins, as functions: triplets, labelled pairs, given pairs."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import pairwise as _pairwise

__all__ = ["contrastive", "cosine_contrastive", "triplet_margin"]


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Tensor | float = 0.2,
    mining: str = "all",
    distance: str = "euclidean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Triplet margin loss, the triplets mined within the batch (Schroff et al. 2015, Hermans et al. 2017).

    A triplet is an anchor a, a positive p (another row of its label) and a negative n (a row of another
    label). It costs ``max(d(a, p) - d(a, n) + margin, 0)``. Mined are

    - ``all`` triplets (Hermans et al. eq. 6), in O(N M log M) time, not in O(N M^2);
    - the ``hard``-est of each anchor: its farthest positive and nearest negative (eq. 5; of equally far ones
      the first);
    - ``semihard``: for each anchor and positive the nearest negative that is farther than the positive, or
      the farthest negative where none is (Schroff et al. sec. 3.2, in the form of TensorFlow Addons and
      sentence-transformers).

    On CPU and with Triton no (N, M) matrix is stored.

    Embeddings are taken as they are: normalize them first where distances are to be on the sphere.

    Args:
        embeddings: (N, D), each row an anchor.
        labels: (N,) integers.
        margin: how much nearer positives are to be than negatives; a tensor of one element gets a gradient.
        mining: ``all``, ``hard`` or ``semihard``.
        distance: ``euclidean`` (with gradient 0 at distance 0) or ``cosine``, ``1 - cos``.
        ref: (M, D) rows to take positives and negatives from, e.g. a memory of earlier batches. Without it
            they are taken from ``embeddings``, and no row is its own positive.
        ref_labels: (M,) integers, with ``ref``.
        reduction: ``none`` gives (N,) sums over each anchor's triplets and ``sum`` the sum over all of them.
            ``mean`` divides it by the number of triplets mined, ``mean_nonzero`` by the number of those that
            cost anything, which is what pytorch-metric-learning and sentence-transformers do: as training
            goes on, most of ``all`` triplets cost nothing, and ``mean`` fades. Without a triplet, 0.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, an unknown name, or there are no rows to
            take the mean of.
    """
    return _pairwise.triplet_margin(
        embeddings,
        labels,
        margin,
        mining=mining,
        distance=distance,
        ref=ref,
        ref_labels=ref_labels,
        reduction=reduction,
    )


def contrastive(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_margin: Tensor | float = 0.0,
    negative_margin: Tensor | float = 1.0,
    distance: str = "euclidean",
    reduction: str = "mean",
) -> Tensor:
    """Contrastive loss of all pairs of the batch (Hadsell et al. 2006, eq. 4, without its factor 1/2).

    A pair of rows with one label costs ``max(d - positive_margin, 0)^2``, a pair with different labels
    ``max(negative_margin - d, 0)^2``.

    Args:
        embeddings: (N, D), taken as they are.
        labels: (N,) integers.
        positive_margin: distance up to which rows of one label may stay apart.
        negative_margin: distance from which rows of different labels are left alone. For either margin, a
            tensor of one element gets a gradient.
        distance: ``euclidean`` (with gradient 0 at distance 0) or ``cosine``, ``1 - cos``.
        reduction: ``sum`` is the sum over all N (N - 1) / 2 pairs, ``mean`` their mean (0 for a single row),
            and ``none`` gives (N,) numbers that add up to the sum: half of each pair goes to either row.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, an unknown name, or there are no rows to
            take the mean of.
    """
    return _pairwise.contrastive(
        embeddings, labels, positive_margin, negative_margin, distance=distance, reduction=reduction
    )


def cosine_contrastive(
    x1: Tensor, x2: Tensor, target: Tensor, *, margin: Tensor | float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Cosine loss of given pairs, the values of :func:`torch.nn.functional.cosine_embedding_loss`.

    Where the target is 1: ``1 - cos(x1, x2)``; where it is -1: ``max(cos(x1, x2) - margin, 0)``.

    Args:
        x1: (N, D).
        x2: (N, D); ``x1[i]`` and ``x2[i]`` are a pair.
        target: (N,), 1 for pairs that belong together, -1 for others.
        margin: cosine up to which the others cost nothing; a tensor of one element gets a gradient.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or targets do not fit, or there is nothing to take the mean of.
    """
    return _pairwise.cosine_contrastive(x1, x2, target, margin, reduction=reduction)
