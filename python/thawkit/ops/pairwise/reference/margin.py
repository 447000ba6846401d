"""The definitions of the losses on distances with margins: triplets, pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.ops.pairwise.reference.distances import distances


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    ref: Tensor | None,
    ref_labels: Tensor | None,
    margin: Tensor,
    mining: str,
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triplet loss of each anchor: ``max(d(a, p) - d(a, n) + margin, 0)`` over the triplets that are mined.

    Args:
        embeddings: (N, D) anchors.
        labels: (N,) integers.
        ref: (M, D) rows that positives and negatives come from; None: the anchors, no row with itself.
        ref_labels: (M,) integers, with ``ref``.
        margin: number.
        mining: ``all``: every triplet (Hermans et al. 2017, eq. 6; 1703.07737). ``hard``: of each anchor the
            farthest positive and the nearest negative (eq. 5). ``semihard``: of each anchor and positive the
            nearest negative that is farther than the positive, or the farthest where none is (Schroff et al.
            2015, sec. 3.2; 1503.03832). Of equally far rows the first is taken.
        distance: ``euclidean`` or ``cosine``.

    Returns:
        (N,) sums of the losses of each anchor's triplets, their number, and the number of those with a loss
        above 0.
    """
    d = distances(embeddings, embeddings if ref is None else ref, distance)
    positive = labels[:, None] == (labels if ref_labels is None else ref_labels)
    negative = ~positive
    if ref is None:
        positive = positive.masked_fill(torch.eye(len(d), dtype=torch.bool, device=d.device), False)
    if d.shape[1] == 0:
        nothing = d.sum(1)
        return nothing, nothing.long(), nothing.long()
    mine = {"all": _all_triplets, "hard": _hardest_triplets, "semihard": _semihard_triplets}[mining]
    return mine(d, positive, negative, margin.to(d.dtype))


def _all_triplets(
    d: Tensor, positive: Tensor, negative: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort and search instead of forming (N, M, M) triplets.

    The loss is linear in the distances as long as the same triplets are above 0, so with the number of these
    that each distance is in, anchor i has the loss
    ``sum_p above_ip (d_ip + margin) - sum_n above_in d_in``, and the numbers have no gradient.
    """
    reach = (d + margin).detach().contiguous()  # negatives nearer than this cost something
    d_negative = d.detach().where(negative, torch.inf)
    nearer = torch.searchsorted(d_negative.sort(dim=1).values, reach)
    short = torch.searchsorted(reach.where(positive, torch.inf).sort(dim=1).values, d_negative, right=True)
    positives = positive.sum(1)
    above = nearer.where(positive, 0) - (positives[:, None] - short).clamp_min(0).where(negative, 0)
    active = nearer.where(positive, 0).sum(1)
    costs = (above * d).masked_fill((above == 0) & d.isinf(), 0)
    return costs.sum(1) + active * margin, positives * negative.sum(1), active


def _hardest_triplets(
    d: Tensor, positive: Tensor, negative: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mined = positive.any(1) & negative.any(1)
    farthest = d.where(positive, -torch.inf).max(1).values
    nearest = d.where(negative, torch.inf).min(1).values
    rows = F.relu(farthest - nearest + margin).where(mined, 0)
    return rows, mined.long(), (rows > 0).long()


def _semihard_triplets(
    d: Tensor, positive: Tensor, negative: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mined = positive & negative.any(1, keepdim=True)
    from_negatives = d.detach().where(negative, torch.inf)
    ascending, order = from_negatives.sort(dim=1, stable=True)
    farther = torch.searchsorted(ascending, d.detach().contiguous(), right=True)
    nearest = order.gather(1, farther.clamp_max(d.shape[1] - 1))
    farthest = d.detach().where(negative, -torch.inf).argmax(1, keepdim=True)
    chosen = nearest.where(farther < (from_negatives < torch.inf).sum(1, keepdim=True), farthest)
    losses = F.relu(d - d.gather(1, chosen) + margin).where(mined, 0)
    return losses.sum(1), mined.sum(1), (losses > 0).sum(1)


def contrastive(
    embeddings: Tensor, labels: Tensor, positive_margin: Tensor, negative_margin: Tensor, distance: str
) -> Tensor:
    """Contrastive loss of all pairs (Hadsell et al. 2006, eq. 4, without its factor 1/2).

    Args:
        embeddings: (N, D).
        labels: (N,) integers.
        positive_margin: distance up to which a pair of one class costs nothing.
        negative_margin: distance from which a pair of two classes costs nothing.
        distance: ``euclidean`` or ``cosine``.

    Returns:
        (N,): half the sum of each row's pairs, ``max(d - positive_margin, 0)^2`` within a class and
        ``max(negative_margin - d, 0)^2`` between classes, so that all rows add up to every pair once.
    """
    d = distances(embeddings, embeddings, distance)
    within = F.relu(d - positive_margin.to(d.dtype)).square()
    between = F.relu(negative_margin.to(d.dtype) - d).square()
    itself = torch.eye(len(d), dtype=torch.bool, device=d.device)
    return within.where(labels[:, None] == labels, between).masked_fill(itself, 0).sum(1) / 2


def cosine_contrastive(x1: Tensor, x2: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Cosine loss of given pairs, as :class:`torch.nn.CosineEmbeddingLoss` has it.

    Args:
        x1: (N, D).
        x2: (N, D).
        target: (N,), 1 for pairs that belong together, -1 for others.
        margin: cosine up to which the others cost nothing.

    Returns:
        (N,): ``1 - cos(x1, x2)`` where the target is 1, ``max(cos(x1, x2) - margin, 0)`` where it is -1.
    """
    # torch's constant: within rows of no length the cosine is 0, and its gradient finite
    lengths = (x1.square().sum(1) + 1e-12).sqrt() * (x2.square().sum(1) + 1e-12).sqrt()
    cosine = (x1 * x2).sum(1) / lengths
    return (1 - cosine).where(target == 1, F.relu(cosine - margin.to(cosine.dtype)))
