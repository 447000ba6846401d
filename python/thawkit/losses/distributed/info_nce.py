"""InfoNCE across ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize as normalized

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.distributed.exchange import gather, replicated, total
from thawkit.losses.distributed.ranks import UNTRACED, Ranks, Rows, meet
from thawkit.losses.distributed.softmax import cross_entropy, over_all_keys
from thawkit.losses.distributed.terms import Turn, Weight, log_sum_exp
from thawkit.losses.functional.similarity import alone
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, numbered, summand
from thawkit.ops.pairwise.info_nce import check_beta, check_weight, weighted
from thawkit.ops.pairwise.negatives import check_keys, check_margin, check_negatives, row_logits, with_further


@torch.compiler.disable(reason=UNTRACED)
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
    mode: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE of this rank's queries against the keys of all ranks.

    See :func:`thawkit.losses.functional.info_nce`; of its options ``soft_targets`` has no form here.

    Args:
        q: (N, D) queries of this rank.
        k: (M, D) keys of this rank, M >= N; ``k[i]`` is the positive of ``q[i]``, keys past N, e.g. several
            columns of hard negatives, are negatives of all ranks' queries.
        negatives: (M, D) further keys of this rank that are negatives of all ranks' queries, or (N, M, D),
            ``negatives[i]`` for ``q[i]`` alone, whose M may differ between ranks. A queue that all ranks hold
            alike is not to be gathered; out of the batch it needs no other rank, but the single-process
            function.
        in_batch: the keys of other rows, and of other ranks, are negatives too.
        logit_scale: inverse temperature, the same on all ranks; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``mean`` or ``sum`` over the queries of all ranks; ``none``: (N,) losses of this rank's.
        labels: (M,) classes of the keys, the first N being those of the queries too: keys of a query's own
            class, on any rank, are no negatives.
        false_negative_margin: keys whose similarity to the query is above its positive's by more than this
            are no negatives. With ``mode="gather"`` only.
        sample_weight: (N,) factors of the losses; the mean divides by the sum of all ranks'.
        hard_negative_beta: above 0, negatives weigh ``exp(beta s_ij)``, on average 1.
        mode: ``gather`` or ``ring``.
        group: the ranks; None: all.

    Returns:
        Scalar, or (N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others, or options exclude each
            other.
    """
    ranks = Ranks.of(group, mode)
    of_rows: dict[str, Any] = {"negatives": negatives, "labels": labels, "sample_weight": sample_weight}
    numbers: dict[str, Any] = {
        "logit_scale": logit_scale,
        "false_negative_margin": false_negative_margin,
        "hard_negative_beta": hard_negative_beta,
    }
    options: dict[str, Any] = {"in_batch": in_batch, "normalize": normalize, "reduction": reduction}
    if ranks is None:
        return F.info_nce(q, k, **of_rows, **numbers, **options)
    tensors: dict[str, Any] = {"q": q, "k": k, **of_rows}
    queries, rows, further = meet(
        ranks,
        "info_nce",
        tensors,
        numbers,
        options,
        ["q", "k", "negatives"],
        lambda: _check(ranks, **tensors, **numbers, **options),
    )
    checks.reduced("q", queries.total, reduction)
    shared = negatives is not None and negatives.dim() == 2
    with full_precision(q):
        scale = replicated(checks.one_number("logit_scale", logit_scale, q), ranks)
        factor = summand(reduction, queries.total)
        if labels is not None:
            labels = numbered(gather(labels.long(), rows))[rows.before :][: rows.own].to(torch.int32)
        weight: Weight = factor
        if sample_weight is not None:
            sample_weight = sample_weight.to(lifted(q).dtype)
            if factor is not None:
                everyone = total(sample_weight.sum(), ranks) if reduction == "mean" else 1
                weight = sample_weight / everyone
        if hard_negative_beta:
            loss = _reduced(_hard(q, k, scale, rows, hard_negative_beta, labels, normalize), weight)
        elif in_batch and (negatives is None or shared):
            if negatives is not None:
                k, rows = torch.cat((k, negatives)), rows.with_more(further)
            margin = math.inf if false_negative_margin is None else false_negative_margin
            loss = cross_entropy(
                q, k, scale, rows, normalize=normalize, weight=weight, labels=labels, margin=margin
            )
        else:
            assert negatives is not None  # without them, in_batch is true
            positive = row_logits(q, k[: q.shape[0], None], scale, normalize).squeeze(1)
            log_sum = torch.full_like(positive, -torch.inf)
            if not shared:
                log_sum = row_logits(q, negatives, scale, normalize).logsumexp(1)
            elif further.total:
                turn = Turn(further, (log_sum_exp(normalize),))
                (log_sum,) = over_all_keys(q, negatives, scale, turn)
            batch = torch.zeros_like(positive)
            if in_batch:
                batch = cross_entropy(q, k, scale, rows, normalize=normalize, weight=None)
            loss = _reduced(with_further(batch, positive, log_sum), weight)
        if factor is not None:
            return total(loss, ranks)
        return loss if sample_weight is None else weighted(loss, sample_weight, "none")


def _reduced(rows: Tensor, weight: Weight) -> Tensor:
    if weight is None:
        return rows
    return weighted(rows, weight, "sum") if isinstance(weight, Tensor) else rows.sum() * weight


def _hard(
    q: Tensor, k: Tensor, scale: Tensor, rows: Rows, beta: float, labels: Tensor | None, normalize: bool
) -> Tensor:
    """Rows of the loss of :func:`thawkit.ops.pairwise.info_nce_with_hard_negatives`."""
    if normalize:
        q, k = normalized(lifted(q), dim=1), normalized(lifted(k), dim=1)
    if labels is None:
        row_labels, rule = None, "ignored"
        count = torch.full(q.shape[:1], rows.total - 1, device=q.device)
    else:
        row_labels, rule = labels[: q.shape[0]], "drop same"
        same = gather(labels, rows).bincount(minlength=rows.total)[row_labels.long()]
        count = rows.total - same
    terms = tuple(
        log_sum_exp(False, times=times, others=True, row_labels=row_labels, labels=rule)
        for times in (1 + beta, beta)
    )
    hard, level = over_all_keys(q, k, scale, Turn(rows, terms, labels))
    hard = (hard - level + count.to(hard.dtype).log()).masked_fill(count == 0, -torch.inf)
    positive = row_logits(q, k[: q.shape[0], None], scale, False).squeeze(1)
    return with_further(torch.zeros_like(positive), positive, hard)


def _check(
    ranks: Ranks,
    q: Tensor,
    k: Tensor,
    negatives: Tensor | None,
    logit_scale: Tensor | float,
    labels: Tensor | None,
    sample_weight: Tensor | None,
    in_batch: bool,
    normalize: bool,
    reduction: str,
    false_negative_margin: float | None,
    hard_negative_beta: float,
) -> None:
    checks.boolean("in_batch", in_batch)
    checks.boolean("normalize", normalize)
    checks.finite("hard_negative_beta", hard_negative_beta)
    check_keys(q, k, in_batch)
    checks.scalar("logit_scale", logit_scale)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    options = {"labels": labels, "false_negative_margin": false_negative_margin}
    options |= {"sample_weight": sample_weight, "hard_negative_beta": hard_negative_beta or None}
    given = {name for name, value in options.items() if value is not None}
    if negatives is not None:
        check_negatives(negatives, q)
        alone("negatives", given - {"sample_weight", "false_negative_margin"})
    elif not in_batch:
        raise ThawkitError("negatives must be given where in_batch is false, got None")
    if hard_negative_beta:
        check_beta(hard_negative_beta)
        alone("hard_negative_beta", given - {"labels", "sample_weight"})
    if labels is not None:
        checks.labels("labels", labels, "k", k)
    if sample_weight is not None:
        check_weight(sample_weight, q)
    check_margin(false_negative_margin, negatives, in_batch)
    if false_negative_margin is not None and ranks.mode != "gather":
        raise ThawkitError(f"false_negative_margin needs mode='gather', got mode={ranks.mode!r}")
