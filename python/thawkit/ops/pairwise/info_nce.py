"""InfoNCE and what its users decide about its columns: checks, and the views of the row softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, ignored_rows, lifted, numbered, reduced
from thawkit.ops.pairwise.linear_cross_entropy import linear_cross_entropy
from thawkit.ops.pairwise.row_softmax import Columns, RowStatistics, row_softmax, row_softmax_and_statistics


def info_nce(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    labels: Tensor | None = None,
    false_negative_margin: float | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """InfoNCE loss (van den Oord et al. 2018, eq. 4): ``k[i]`` is the positive of ``q[i]``.

    Args:
        q: (N, D) queries.
        k: (M, D) keys of the same dtype, M >= N; the keys past N are negatives only.
        logit_scale: inverse temperature, a number or a tensor of one element, which gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.
        labels: (M,) integers: keys of the query's own label, which is that of its positive, are no negatives.
        false_negative_margin: keys more similar to the query than its positive by more than this are no
            negatives.
        sample_weight: (N,) factors of the losses; the mean divides by their sum.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    columns, options = _columns(q, k, labels, false_negative_margin, reduction)
    if sample_weight is None:
        weight = 1.0 / q.shape[0] if reduction == "mean" else 1.0
        options |= {"weight": weight, "reduce": reduction != "none"}
        return row_softmax(q, k, logit_scale, normalize=normalize, columns=columns, **options)
    check_weight(sample_weight, q)
    if reduction == "none":
        rows = row_softmax(q, k, logit_scale, normalize=normalize, reduce=False, columns=columns, **options)
        return weighted(rows, sample_weight, reduction)
    row_weight = sample_weight.to(lifted(q).dtype)
    if reduction == "mean":
        row_weight = row_weight / row_weight.sum()
    return row_softmax(
        q, k, logit_scale, normalize=normalize, row_weight=row_weight, columns=columns, **options
    )


def info_nce_statistics(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
) -> tuple[Tensor, RowStatistics]:
    """Return :func:`info_nce` and what the same pass knows of each row."""
    columns, _ = _columns(q, k, None, None, reduction)
    weight = 1.0 / q.shape[0] if reduction == "mean" else 1.0
    loss, statistics = row_softmax_and_statistics(
        q, k, logit_scale, normalize=normalize, weight=weight, reduce=reduction != "none", columns=columns
    )
    assert statistics is not None  # they were asked for
    return loss, statistics


def info_nce_with_hard_negatives(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    beta: float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    labels: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """InfoNCE whose negatives weigh ``exp(beta s)``, on average 1 (Robinson et al. 2021, eq. 4 with tau = 0).

    ``log(1 + exp(n_i - s_ii))`` with ``exp(n_i) = M_i sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij)``
    over the M_i negatives: two log-sum-exps of the engine. Arguments and errors are :func:`info_nce`'s.
    """
    check_beta(beta)
    if sample_weight is not None:
        check_weight(sample_weight, q)
    columns, options = _columns(q, k, labels, None, reduction)
    scale = checks.one_number("logit_scale", logit_scale, q)
    rows, keys = q.shape[0], k.shape[0]
    ignored = ignored_rows(sample_weight, q)
    with full_precision(q):
        q, k = lifted(q), lifted(k)  # several gradients of theirs add up before they are rounded
        if ignored is not None:
            q = q.masked_fill(ignored[:, None], 0)
        if normalize:
            q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        if labels is None:
            columns = Columns(excluded=0)
            count: Tensor | float = math.log(keys - 1) if keys > 1 else -math.inf
        else:
            numbers = options["key_labels"].long()
            same = torch.zeros_like(numbers).index_add(0, numbers, torch.ones_like(numbers))[numbers[:rows]]
            count = (keys - same).to(q.dtype).log()  # -inf where there are no negatives

        def log_sum(times: float) -> Tensor:
            nobody = torch.full((rows,), -1, device=q.device)
            return row_softmax(q, k, times * scale, target=nobody, columns=columns, reduce=False, **options)

        hard = log_sum(1 + beta) - log_sum(beta) + count
        nothing = count.isinf() if isinstance(count, Tensor) else torch.tensor(keys < 2, device=q.device)
        hard = hard.masked_fill(nothing, -torch.inf)
        positive = scale * (q * k[:rows]).sum(1)
        return weighted(-F.logsigmoid(positive - hard), sample_weight, reduction, ignored)


def info_nce_with_soft_targets(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    soft_targets: Tensor,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each row against given probabilities (N, M) of its positives, which get a gradient."""
    checks.row_pair("q", q, "k", k)
    scale = checks.one_number("logit_scale", logit_scale, q)
    shape = q.shape[0], k.shape[0]
    if not isinstance(soft_targets, Tensor) or soft_targets.shape != shape:
        came = tuple(soft_targets.shape) if isinstance(soft_targets, Tensor) else type(soft_targets).__name__
        raise ThawkitError(f"soft_targets must have shape {shape}, got {came}")
    checks.floating("soft_targets", soft_targets)
    checks.same_device("soft_targets", soft_targets, "q", q)
    checks.reduced("q", q.shape[0], reduction)
    if sample_weight is not None:
        check_weight(sample_weight, q)
    if 0 in (*shape, q.shape[1]):  # no keys, no features: not what a classifier is
        scores = scale * (lifted(q) @ lifted(k).t())
        return weighted(-(soft_targets * scores.log_softmax(1)).sum(1), sample_weight, reduction)
    ignored = ignored_rows(sample_weight, q, soft_targets)
    if ignored is not None:
        q, soft_targets = (x.masked_fill(ignored[:, None], 0) for x in (q, soft_targets))
    with full_precision(q):
        q, k = lifted(q), lifted(k)
        if normalize:
            q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        q = scale.to(q.dtype) * q
        if sample_weight is None:
            return linear_cross_entropy(q, k, soft_targets, reduction=reduction)
        rows = linear_cross_entropy(q, k, soft_targets, reduction="none")
        return weighted(rows, sample_weight, reduction, ignored)


def _columns(
    q: Tensor, k: Tensor, labels: Tensor | None, margin: float | None, reduction: str
) -> tuple[Columns, dict]:
    checks.row_pair("q", q, "k", k)
    if k.shape[0] < q.shape[0]:
        raise ThawkitError(
            f"k must have at least as many rows as q, whose positives they are, "
            f"got {k.shape[0]} < {q.shape[0]}"
        )
    checks.reduced("q", q.shape[0], reduction)
    options: dict = {}
    if labels is not None:
        checks.labels("labels", labels, "k", k)
        numbers = numbered(labels).to(torch.int32)
        options = {"row_labels": numbers[: q.shape[0]], "key_labels": numbers}
    if margin is not None:
        checks.finite("false_negative_margin", margin)
    if labels is None and margin is None:
        return Columns(), options
    return Columns(
        labels="ignored" if labels is None else "drop same", margin=math.inf if margin is None else margin
    ), options


def check_beta(beta: float) -> None:
    """Require a positive exponent of the negatives' weights."""
    checks.finite("hard_negative_beta", beta)
    if beta <= 0:
        raise ThawkitError(f"hard_negative_beta must be above 0, got {beta}")


def weighted(
    rows: Tensor, sample_weight: Tensor | None, reduction: str, ignored: Tensor | None = None
) -> Tensor:
    """Return losses of rows times their weights, reduced; of weight 0 they may be infinite or ignored."""
    if sample_weight is None:
        return reduced(rows, reduction)
    weight = sample_weight.to(rows.dtype)
    if ignored is not None:
        rows = rows.masked_fill(ignored, 0.0)
    rows = weight * rows.where((weight != 0) | rows.isfinite(), 0.0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / weight.sum()


def check_weight(sample_weight: Tensor, q: Tensor) -> None:
    """Require a weight for each query."""
    checks.floating("sample_weight", sample_weight)
    if sample_weight.shape != q.shape[:1]:
        raise ThawkitError(f"sample_weight must have shape ({q.shape[0]},), got {tuple(sample_weight.shape)}")
    checks.same_device("sample_weight", sample_weight, "q", q)
