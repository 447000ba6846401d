"""Losses on the similarities of embeddings, as functions: softmax and sigmoid forms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise

__all__ = ["clip", "info_nce", "info_nce_statistics", "nt_xent", "nt_xent_labels", "siglip", "supcon"]


def info_nce(
    q: Tensor,
    k: Tensor,
    *,
    negatives: Tensor | None = None,
    in_batch: bool = True,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    labels: Tensor | None = None,
    false_negative_margin: float | None = None,
    sample_weight: Tensor | None = None,
    hard_negative_beta: float = 0.0,
    soft_targets: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): each query against its own key and all others.

    ``loss_i = -log(exp(s_ii) / sum_j exp(s_ij))``, ``s = logit_scale * q @ k.T``, further negatives being
    further columns of s.

    The matrix of similarities is never stored, and with ``reduction="mean"`` or ``"sum"`` the gradients are
    ready when the loss is (with negatives of each row, or out of the batch, some are computed in the backward
    pass). A frozen side costs no gradient product.

    Args:
        q: (N, D) queries, e.g. embeddings of one view.
        k: (M, D) keys, M >= N; ``k[i]`` is the positive of ``q[i]``, keys past N are extra negatives.
        negatives: further keys that are nobody's positive: (M, D) for all queries, e.g. those of a
            :class:`~thawkit.losses.NegativeQueue`, or (N, M, D), ``negatives[i]`` for ``q[i]`` alone, e.g.
            mined ones.
        in_batch: the keys of other rows are negatives too. Without them ``negatives`` must be given, and k is
            (N, D): MoCo's loss (He et al. 2020, eq. 1), and that of the package info-nce-pytorch.
        logit_scale: inverse temperature; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none``, ``mean`` or ``sum``.
        labels: (M,) classes of the keys, the first N being those of the queries too: keys of a query's own
            class are no negatives.
        false_negative_margin: keys whose similarity to the query is above its positive's by more than this
            are no negatives.
        sample_weight: (N,) factors of the losses, 0 for a query to be ignored; the mean divides by their sum,
            and of a sum of 0 is not a number.
        hard_negative_beta: above 0, negatives weigh ``exp(beta s_ij)``, on average 1 (Robinson et al. 2021,
            eq. 4, without its correction for false negatives).
        soft_targets: (N, M) probabilities of the keys instead of one positive a query; they get a gradient.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or options exclude each other.
    """
    checks.boolean("in_batch", in_batch)
    checks.boolean("normalize", normalize)
    checks.finite("hard_negative_beta", hard_negative_beta)
    options = {
        "labels": labels,
        "false_negative_margin": false_negative_margin,
        "sample_weight": sample_weight,
        "hard_negative_beta": hard_negative_beta or None,
        "soft_targets": soft_targets,
    }
    given = {name for name, value in options.items() if value is not None}
    if negatives is None:
        if not in_batch:
            raise ThawkitError("negatives must be given where in_batch is false, got None")
        common: dict[str, Any] = {"normalize": normalize, "reduction": reduction}
        if soft_targets is not None:
            alone("soft_targets", given - {"sample_weight"})
            return _pairwise.info_nce_with_soft_targets(
                q, k, logit_scale, soft_targets, sample_weight=sample_weight, **common
            )
        if hard_negative_beta:
            alone("hard_negative_beta", given - {"labels", "sample_weight"})
            return _pairwise.info_nce_with_hard_negatives(
                q, k, logit_scale, hard_negative_beta, labels=labels, sample_weight=sample_weight, **common
            )
        return _pairwise.info_nce(
            q,
            k,
            logit_scale,
            labels=labels,
            false_negative_margin=false_negative_margin,
            sample_weight=sample_weight,
            **common,
        )
    alone("negatives", given - {"sample_weight", "false_negative_margin"})
    return _pairwise.info_nce_with_negatives(
        q,
        k,
        negatives,
        logit_scale,
        in_batch=in_batch,
        normalize=normalize,
        reduction=reduction,
        sample_weight=sample_weight,
        false_negative_margin=false_negative_margin,
    )


def info_nce_statistics(
    q: Tensor,
    k: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> tuple[Tensor, _pairwise.RowStatistics]:
    """InfoNCE, and what the same pass knows of each query: log-sum-exp, the positive's logit, top-1.

    Args:
        q: (N, D) queries.
        k: (M, D) keys, M >= N; ``k[i]`` is the positive of ``q[i]``.
        logit_scale: inverse temperature; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss as :func:`info_nce` gives it, and the statistics, (N,) each and without gradients:
        ``statistics.top1.float().mean()`` is the batch's retrieval accuracy.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.info_nce_statistics(q, k, logit_scale, normalize=normalize, reduction=reduction)


def alone(name: str, given: set[str]) -> None:
    """Require that no other option is given beside one of that name."""
    others = sorted(given - {name})
    if others:
        raise ThawkitError(f"{name} cannot be combined with {', '.join(others)}")


def clip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """CLIP's loss (Radford et al. 2021, fig. 3): InfoNCE in both directions, averaged.

    Both directions share one pass over the similarities, which are never stored; a frozen tower costs no
    gradient product.

    Args:
        image: (N, D) embeddings.
        text: (N, D) embeddings; ``text[i]`` belongs to ``image[i]``.
        logit_scale: inverse temperature (CLIP's ``logit_scale.exp()``); a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first; rows that have norm 1 may skip it.
        reduction: ``none`` gives (N,) losses, one for each pair, ``mean`` and ``sum`` a scalar.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.clip(image, text, logit_scale, normalize=normalize, reduction=reduction)


def siglip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 10.0,
    logit_bias: Tensor | float = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1): every pair is classified alone, matching or not.

    ``loss_i = -sum_j logsigmoid(z_ij (logit_scale <image_i, text_j> + logit_bias))``, with z_ij = 1 where
    i = j and -1 elsewhere.

    Args:
        image: (N, D) embeddings.
        text: (N, D) embeddings; ``text[i]`` belongs to ``image[i]``.
        logit_scale: SigLIP's ``exp(t')``; a tensor of one element gets a gradient.
        logit_bias: likewise. The defaults are those that the paper starts from.
        normalize: divide each row by its Euclidean norm first; rows that have norm 1 may skip it.
        reduction: ``none`` gives the (N,) losses of the rows, ``sum`` their sum, ``mean`` their sum over N.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.siglip(image, text, logit_scale, logit_bias, normalize=normalize, reduction=reduction)


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: Tensor | float = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1): two views of N samples.

    With ``z = cat(z1, z2)`` each of its 2N rows is to find its partner among the 2N - 1 other rows:
    ``loss_i = -log(exp(s_ip) / sum_{j != i} exp(s_ij))``, ``s = z @ z.T / temperature``.

    Args:
        z1: (N, D) embeddings of one view.
        z2: (N, D) embeddings of the other view; ``z2[i]`` and ``z1[i]`` are of one sample.
        temperature: positive; a tensor of one element gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none`` gives (2N,) losses in the order of ``cat(z1, z2)``, ``mean`` and ``sum`` a scalar.

    Returns:
        Scalar or (2N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, the temperature is not positive, or there is
            nothing to take the mean of.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.nt_xent(z1, z2, temperature, normalize=normalize, reduction=reduction)


def nt_xent_labels(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Tensor | float = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | None = None,
) -> Tensor:
    """NT-Xent with labels, as pytorch-metric-learning has it: each pair of a class against other classes.

    A pair of one label, an anchor a and another row p, costs
    ``-log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an)))``, the rows n being those of other labels and
    ``s = z @ z.T / temperature``. So other rows of the anchor's class are no negatives, unlike in
    :func:`supcon`. No matrix of pairs is stored, of either kind; the losses of an anchor's pairs are computed
    128 anchors at a time.

    Args:
        embeddings: (N, D), each row an anchor.
        labels: (N,) integers.
        temperature: positive; a tensor of one element gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none`` gives (N,) sums over each anchor's pairs and ``sum`` the sum over all of them.
            ``mean`` divides it by their number, ``mean_nonzero`` by the number of those that cost anything.
            Without a pair, 0.
        ref: (M, D) rows to take positives and negatives from, e.g. a memory of earlier batches. Without it
            they are taken from ``embeddings``, and no row is its own positive.
        ref_labels: (M,) integers, with ``ref``.
        own: with ``ref``: row i of ``embeddings`` is also row ``own + i`` of it, and no pair.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, the temperature is not positive, an
            unknown name, or there are no rows to take the mean of.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.nt_xent_labels(
        embeddings,
        labels,
        temperature,
        normalize=normalize,
        reduction=reduction,
        ref=ref,
        ref_labels=ref_labels,
        own=own,
    )


def supcon(
    embeddings: Tensor,
    labels: Tensor | None,
    *,
    temperature: Tensor | float = 0.1,
    variant: str = "out",
    normalize: bool = True,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | None = None,
    pair_weight: Tensor | None = None,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020): all rows of a class are each other's positives.

    With p_ij the softmax of ``s_ij = <z_i, z_j> / temperature`` over all j other than i, and w_ij = 1 where
    the labels of i and j are equal, else 0::

        out (eq. 2)    loss_i = -sum_j w_ij log p_ij / sum_j w_ij
        in  (eq. 3)    loss_i = -log(sum_j w_ij p_ij / sum_j w_ij)

    With several labels a row, w_ij is the number of labels that i and j share. For several views of a sample
    concatenate them, and their labels.

    Args:
        embeddings: (N, D).
        labels: (N,) integers, or an (N, L) matrix of zeros and ones; None with ``pair_weight``.
        temperature: positive; a tensor of one element gets a gradient.
        variant: ``out`` (the paper's choice) or ``in``.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none`` gives (N,) losses, ``sum`` their sum, ``mean`` their mean over the rows that have
            a positive. A row without one has loss 0, and so has a batch of such rows.
        ref: (M, D) rows that j goes over instead of the other embeddings, e.g. a memory of earlier batches.
        ref_labels: (M,) or (M, L), with ``ref`` and ``labels``.
        own: with ``ref``: row i of ``embeddings`` is also row ``own + i`` of it, and left out.
        pair_weight: in place of labels a matrix of w_ij, at least 0 and without a gradient: (N, N), or (N, M)
            with ``ref``. A smaller (B, C) one is repeated in both directions, for views of B samples that
            are concatenated one after the other.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, the temperature is not positive, an
            unknown name, or there is nothing to take the mean of.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.supcon(
        embeddings,
        labels,
        temperature,
        variant=variant,
        normalize=normalize,
        reduction=reduction,
        ref=ref,
        ref_labels=ref_labels,
        own=own,
        pair_weight=pair_weight,
    )
