"""InfoNCE with further negatives, shared by all rows or each row's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, ignored_rows, lifted, product
from thawkit.ops.pairwise.info_nce import check_weight, info_nce, weighted
from thawkit.ops.pairwise.row_softmax import row_softmax


def info_nce_with_negatives(
    q: Tensor,
    k: Tensor,
    negatives: Tensor,
    logit_scale: Tensor | float,
    *,
    in_batch: bool = True,
    normalize: bool = True,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    false_negative_margin: float | None = None,
) -> Tensor:
    """InfoNCE where ``k[i]`` is the positive of ``q[i]`` and ``negatives`` are no row's positive.

    Args:
        q: (N, D) queries.
        k: (N, D) keys of the same dtype; with ``in_batch`` more may follow, as negatives.
        negatives: (M, D) negatives of every row, or (N, M, D): ``negatives[i]`` are those of ``q[i]`` only.
        logit_scale: inverse temperature, a number or a tensor of one element, which gets a gradient.
        in_batch: the keys of other rows are negatives too.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.
        sample_weight: (N,) factors of the losses; the mean divides by their sum.
        false_negative_margin: of (M, D) negatives beside those in the batch: keys and negatives more similar
            to the query than its positive by more than this are none.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    check_keys(q, k, in_batch)
    check_negatives(negatives, q)
    if in_batch and negatives.dim() == 2:
        return info_nce(
            q,
            torch.cat((k, negatives)),
            logit_scale,
            normalize=normalize,
            reduction=reduction,
            sample_weight=sample_weight,
            false_negative_margin=false_negative_margin,
        )
    check_margin(false_negative_margin, negatives, in_batch)
    if sample_weight is not None:
        check_weight(sample_weight, q)
    checks.reduced("q", q.shape[0], reduction)
    scale = checks.one_number("logit_scale", logit_scale, q)
    # the parts that are one row's own
    own = [q, *([] if in_batch else [k]), *([negatives] if negatives.dim() == 3 else [])]
    ignored = ignored_rows(sample_weight, *own)
    if ignored is not None:
        q = q.masked_fill(ignored[:, None], 0)
        if not in_batch:
            k = k.masked_fill(ignored[:, None], 0)
        if negatives.dim() == 3:
            negatives = negatives.masked_fill(ignored[:, None, None], 0)
    with full_precision(q):
        positive = row_logits(q, k[: q.shape[0], None], scale, normalize).squeeze(1)
        if negatives.shape[-2] == 0:
            log_sum = torch.full_like(positive, -torch.inf)
        elif negatives.dim() == 2:
            none = torch.full((q.shape[0],), -1, device=q.device)
            log_sum = row_softmax(q, negatives, scale, target=none, normalize=normalize, reduce=False)
        else:
            log_sum = row_logits(q, negatives, scale, normalize).logsumexp(1)
        batch = torch.zeros_like(positive)
        if in_batch:
            batch = info_nce(q, k, scale, normalize=normalize, reduction="none")
        return weighted(with_further(batch, positive, log_sum), sample_weight, reduction, ignored)


def with_further(loss: Tensor, positive: Tensor, log_sum: Tensor) -> Tensor:
    """Return the losses of rows after further negatives have joined.

    Args:
        loss: (N,) ``log(rest) - positive``; 0 where the positive is all that there was.
        positive: (N,) logits of the positives.
        log_sum: (N,) log-sum-exps of the further negatives' logits, -inf where there are none.

    Returns:
        ``log(rest + exp(log_sum)) - positive`` in a form that keeps the digits of a small loss.
    """
    return loss - F.logsigmoid(loss + positive - log_sum)


def row_logits(q: Tensor, keys: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    """Return the (N, M) logits of rows (N, D) with keys of their own (N, M, D)."""
    q, keys = lifted(q), lifted(keys)
    if normalize:
        q, keys = F.normalize(q, dim=-1), F.normalize(keys, dim=-1)
    return scale.to(q.dtype) * product(keys, q[:, :, None]).squeeze(2)


def check_margin(margin: float | None, negatives: Tensor | None, in_batch: bool) -> None:
    """Require that all keys of a query are in one sum where some are to be left out of it."""
    if margin is None:
        return
    checks.finite("false_negative_margin", margin)
    if not in_batch or (negatives is not None and negatives.dim() == 3):
        raise ThawkitError(
            "false_negative_margin takes negatives in the batch, and beside them none or those that all "
            "queries share, (M, D)"
        )


def check_keys(q: Tensor, k: Tensor, in_batch: bool) -> None:
    """Require a positive for each query, and where the batch has no negatives nothing else."""
    checks.row_pair("q", q, "k", k)
    if k.shape[0] < q.shape[0] or (k.shape[0] != q.shape[0] and not in_batch):
        count = "at least as many" if in_batch else "as many"
        raise ThawkitError(
            f"k must have {count} rows as q, whose positives they are, got {k.shape[0]} and {q.shape[0]}"
        )


def check_negatives(negatives: Tensor, q: Tensor) -> None:
    """Require (M, D) or (N, M, D) negatives that fit the queries."""
    checks.floating("negatives", negatives)
    rows, features = q.shape
    fits = negatives.dim() in (2, 3) and negatives.shape[-1] == features
    if not fits or (negatives.dim() == 3 and negatives.shape[0] != rows):
        raise ThawkitError(
            f"negatives must have shape (M, {features}) or ({rows}, M, {features}), "
            f"got {tuple(negatives.shape)}"
        )
    checks.same_device("negatives", negatives, "q", q)
    if negatives.dtype != q.dtype:
        raise ThawkitError(f"negatives must have the dtype of q, {q.dtype}, got {negatives.dtype}")
