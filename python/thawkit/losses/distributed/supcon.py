"""The supervised contrastive loss across ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize as normalized

from thawkit.losses import functional as F
from thawkit.losses.distributed.exchange import gather, replicated, total
from thawkit.losses.distributed.ranks import UNTRACED, Ranks, Rows, meet
from thawkit.losses.distributed.softmax import over_all_keys
from thawkit.losses.distributed.terms import Keys, Term, Turn, Weight, log_sum_exp, weighted
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, numbered, product
from thawkit.ops.pairwise.negatives import with_further
from thawkit.ops.pairwise.positives import Pairs, check_labels
from thawkit.ops.pairwise.row_softmax import Columns, row_softmax

_CHUNK = 1 << 22  # numbers of pairs at once


@torch.compiler.disable(reason=UNTRACED)
def supcon(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Tensor | float = 0.1,
    variant: str = "out",
    normalize: bool = True,
    reduction: str = "mean",
    mode: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Supervised contrastive loss of the rows of all ranks; see :func:`thawkit.losses.functional.supcon`.

    Args:
        embeddings: (N, D) of this rank.
        labels: (N,) integers, or an (N, L) matrix of zeros and ones: those of this rank's rows.
        temperature: positive, the same on all ranks; a tensor of one element gets a gradient.
        variant: ``out`` or ``in``.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``sum`` over the rows of all ranks, ``mean`` over those that have a positive on any rank;
            ``none``: (N,) losses of this rank's.
        mode: ``gather`` or ``ring``.
        group: the ranks; None: all.

    Returns:
        Scalar, or (N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others.
    """
    ranks = Ranks.of(group, mode)
    options: dict[str, Any] = {"variant": variant, "normalize": normalize, "reduction": reduction}
    if ranks is None:
        return F.supcon(embeddings, labels, temperature=temperature, **options)

    def check() -> None:
        checks.matrix("embeddings", embeddings)
        check_labels(labels, embeddings)
        checks.positive_scalar("temperature", temperature)
        checks.one_of("variant", variant, ("out", "in"))
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)

    tensors, numbers = {"embeddings": embeddings, "labels": labels}, {"temperature": temperature}
    (rows,) = meet(ranks, "supcon", tensors, numbers, options, ["embeddings"], check)
    checks.reduced("embeddings", rows.total, reduction)
    with full_precision(embeddings):
        scale = 1 / lifted(replicated(checks.one_number("temperature", temperature, embeddings), ranks))
        z = normalized(lifted(embeddings), dim=1) if normalize else embeddings
        labels, positives = _labels_and_positives(labels, rows, z)
        anchor = positives > 0
        if variant == "in":
            terms = log_sum_exp(False, others=True), _logarithm_of_positives(labels)
            alone = torch.zeros_like(anchor)
        else:
            alone = _alone(labels, positives, rows, scale)
            terms = _others(labels, alone, mode), _positives(labels)
        turn = Turn(rows, terms, labels)
        weight = anchor.to(positives.dtype)
        if reduction == "mean":
            weight = weight / ranks.sum(anchor.sum()).clamp_min(1)
        # out: -sum_j w_ij log p_ij / sum_j w_ij = log-sum-exp - sum_j w_ij s_ij / sum_j w_ij
        # in: -log(sum_j w_ij p_ij / sum_j w_ij) = log-sum-exp - log(sum_j w_ij exp s_ij) + log(sum_j w_ij)
        # That of out leaves no digits of a loss that is nearly 0, as that of a row with one positive may be.
        level = positives.clamp_min(1)
        constant = level.log() if variant == "in" else torch.zeros_like(level)
        divisor = torch.ones_like(level) if variant == "in" else level
        if mode == "gather" and reduction != "none":
            own_weight = (weight / divisor).masked_fill(alone, 0)
            everyone, own = over_all_keys(z, z, scale, turn, (weight, own_weight))
            return total(everyone - own + (weight * constant).sum(), ranks)
        everyone, own = over_all_keys(z, z, scale, turn)
        own = own / divisor
        nearly = everyone if mode == "gather" else with_further(torch.zeros_like(own), own, everyone)
        losses = nearly.where(alone, everyone - own + constant).where(anchor, 0)
        return losses if reduction == "none" else total((losses * weight).sum(), ranks)


def _labels_and_positives(labels: Tensor, rows: Rows, z: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as the terms take them, and (N,) how much all ranks' positives of each row weigh."""
    dtype = lifted(z).dtype
    if labels.dim() == 2:
        shared = labels.to(dtype)
        return shared, shared @ rows.ranks.sum(shared.sum(0)) - shared.square().sum(1)
    numbers = numbered(gather(labels.long(), rows))
    own = numbers[rows.before :][: rows.own]
    return own.to(torch.int32), (numbers.bincount()[own] - 1).to(dtype)


def _alone(labels: Tensor, positives: Tensor, rows: Rows, scale: Tensor) -> Tensor:
    """Which rows have one positive only, (N,) bool."""
    if labels.dim() == 1:
        return positives == 1
    # an (N, L) matrix tells how much the positives weigh, but not how many there are
    turn = Turn(rows, (Term(_number_of_positives, log_sum=False),))
    (number,) = over_all_keys(labels, labels, scale, turn)
    return number == 1


def _number_of_positives(labels: Tensor, keys: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
    part = max(1, _CHUNK // max(keys.rows.shape[0], 1))
    number = torch.cat([(some @ keys.rows.t() > 0).sum(1) for some in labels.split(part)])
    if keys.own is not None:
        number = number - labels.any(1).to(number.dtype)
    return number.to(labels.dtype)


def _others(labels: Tensor, alone: Tensor, mode: str) -> Term:
    """The log-sum-exp of all other rows, but for rows that have one positive what keeps the digits of a loss.

    That is the loss itself where all keys are there (``gather``), else the log-sum-exp without the positive.
    """

    def of(z: Tensor, keys: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
        number, _ = Pairs(labels, keys.labels, None).heaviest(z, keys.rows, keys.own)
        number = number.where(alone, -1)
        options: dict[str, Any] = {"target": number, "columns": Columns(excluded=keys.own)}
        if mode == "ring":
            options = {
                "target": torch.full_like(number, -1),
                "row_labels": number.to(torch.int32),
                "key_labels": torch.arange(keys.rows.shape[0], dtype=torch.int32, device=z.device),
                "columns": Columns(excluded=keys.own, labels="drop same"),
            }
        return row_softmax(z, keys.rows, scalars[0], **options, **weighted(weight))

    return Term(of, log_sum=True)


def _positives(labels: Tensor) -> Term:
    """``sum_j w_ij s_ij``, as the similarity with the sum of a class: O(N D)."""

    def of(z: Tensor, keys: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
        assert keys.labels is not None  # the turn has them
        z, rows = lifted(z), lifted(keys.rows)
        if labels.dim() == 2:
            sums = product(labels, product(keys.labels.t(), rows))
            itself = labels.square().sum(1, keepdim=True) * z
        else:
            # the classes of this rank's rows, and a last one for all others
            classes, own = labels.unique(return_inverse=True)
            last = classes.shape[0]
            place = torch.searchsorted(classes, keys.labels)
            same = torch.cat((classes, classes.new_full((1,), -1)))[place] == keys.labels
            sums = rows.new_zeros(last + 1, rows.shape[1]).index_add(0, place.where(same, last), rows)[own]
            itself = z
        if keys.own is not None:
            sums = sums - itself
        return _weighed(scalars[0] * (z * sums).sum(1), weight)

    return Term(of, log_sum=False)


def _logarithm_of_positives(labels: Tensor) -> Term:
    """``log(sum_j w_ij exp s_ij)``; the weights that two sets of labels give need the matrix of pairs."""
    if labels.dim() == 1:
        return log_sum_exp(False, others=True, row_labels=labels, labels="keep same")

    def of(z: Tensor, keys: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
        assert keys.labels is not None  # the turn has them
        shared = labels @ keys.labels.t()
        if keys.own is not None:
            shared.diagonal(keys.own).zero_()
        logits = scalars[0] * product(lifted(z), lifted(keys.rows).t()) + shared.log()
        nothing = (shared == 0).all(1)
        rows = logits.masked_fill(nothing[:, None], 0).logsumexp(1).masked_fill(nothing, -torch.inf)
        return _weighed(rows, weight)

    return Term(of, log_sum=True)


def _weighed(rows: Tensor, weight: Weight) -> Tensor:
    if weight is None:
        return rows
    return (rows.where(weight != 0, 0) * weight).sum() if isinstance(weight, Tensor) else rows.sum() * weight
