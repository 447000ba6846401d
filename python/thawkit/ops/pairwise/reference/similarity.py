"""The definitions of the losses on similarities: softmax and sigmoid forms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def clip(image: Tensor, text: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    """CLIP's loss of each pair (Radford et al. 2021, fig. 3; 2103.00020).

    Args:
        image: (N, D).
        text: (N, D); ``text[i]`` belongs to ``image[i]``.
        scale: inverse temperature.
        normalize: divide each row by its Euclidean norm first.

    Returns:
        (N,) means of the cross-entropies of row i and of column i of ``scale * image @ text.T``.
    """
    if normalize:
        image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = scale.to(image.dtype) * (image @ text.t())
    own = torch.arange(image.shape[0], device=image.device)
    to_text = F.cross_entropy(logits, own, reduction="none")
    to_image = F.cross_entropy(logits.t(), own, reduction="none")
    return (to_text + to_image) / 2


def siglip(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, normalize: bool, offset: int | None = 0
) -> Tensor:
    """SigLIP's loss of each row (Zhai et al. 2023, algorithm 1; 2303.15343).

    Args:
        image: (N, D).
        text: (M, D); ``text[i + offset]`` belongs to ``image[i]``.
        scale: number that multiplies the similarities.
        bias: number added to them.
        normalize: divide each row by its Euclidean norm first.
        offset: None: no text belongs to any image.

    Returns:
        (N,) losses ``-sum_j logsigmoid(z_ij (scale s_ij + bias))``, z_ij = 1 where j = i + offset and -1
        elsewhere.
    """
    if normalize:
        image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = scale.to(image.dtype) * (image @ text.t()) + bias.to(image.dtype)
    signs = torch.full_like(logits, -1)
    if offset is not None:
        signs.diagonal(offset).fill_(1)
    return -F.logsigmoid(signs * logits).sum(1)


def nt_xent(z1: Tensor, z2: Tensor, temperature: Tensor, normalize: bool) -> Tensor:
    """SimCLR's loss of each row (Chen et al. 2020, eq. 1; 2002.05709).

    Args:
        z1: (N, D) embeddings of one view.
        z2: (N, D) embeddings of the other; ``z2[i]`` and ``z1[i]`` are a pair.
        temperature: positive number.
        normalize: divide each row by its Euclidean norm first.

    Returns:
        (2N,) cross-entropies of the rows of ``cat(z1, z2)``, each against the 2N - 1 others.
    """
    z = torch.cat((z1, z2))
    if normalize:
        z = F.normalize(z, dim=1)
    n = z1.shape[0]
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(_against_others(z, z, 0, temperature), partner, reduction="none")


def shared_labels(labels: Tensor, ref_labels: Tensor) -> Tensor:
    """(N, M) weights of pairs: ``[y_i = y_j]``, or with label matrices (N, L), (M, L) the labels shared."""
    return labels @ ref_labels.t() if labels.dim() == 2 else labels[:, None] == ref_labels


def supcon(
    embeddings: Tensor,
    ref: Tensor,
    weight: Tensor,
    own: int | None,
    temperature: Tensor,
    variant: str,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Supervised contrastive loss of each row (Khosla et al. 2020, eqs. 2 and 3; 2004.11362).

    Args:
        embeddings: (N, D).
        ref: (M, D) rows to compare them with.
        weight: (N, M) weights w_ij of the pairs, above 0 where j is a positive of i.
        own: row i of ``embeddings`` is row ``i + own`` of ``ref``, and no pair; None: they are other rows.
        temperature: positive number.
        variant: ``out``: the mean over positives outside the logarithm (eq. 2); ``in``: inside (eq. 3).
        normalize: divide each row by its Euclidean norm first.

    Returns:
        (N,) losses, and which rows have a positive; the others' loss is 0. With p_ij the softmax of row i
        over ``ref``: ``-sum_j w_ij log p_ij / sum_j w_ij`` or ``-log(sum_j w_ij p_ij / sum_j w_ij)``.
    """
    if normalize:
        embeddings, ref = F.normalize(embeddings, dim=1), F.normalize(ref, dim=1)
    log_p = F.log_softmax(_against_others(embeddings, ref, own, temperature), dim=1)
    weight = weight.to(log_p.dtype).masked_fill(own_pairs(weight, own), 0)
    total = weight.sum(1)
    anchor = total > 0
    share = weight / total.where(anchor, 1)[:, None]
    if variant == "out":
        rows = -(share * log_p.masked_fill(share == 0, 0)).sum(1)
        return rows.where(anchor, 0), anchor
    # rows without a positive pass zeros through the logarithm, whose gradient at no positive is not a number
    terms = (log_p + share.where(share > 0, 1).log()).masked_fill((share == 0) & anchor[:, None], -torch.inf)
    rows = -terms.masked_fill(~anchor[:, None], 0).logsumexp(1)
    return rows.where(anchor, 0), anchor


def nt_xent_labels(
    embeddings: Tensor,
    ref: Tensor,
    labels: Tensor,
    ref_labels: Tensor,
    own: int | None,
    temperature: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """NT-Xent of each pair of one label, against the anchor's rows of other labels.

    Args:
        embeddings: (N, D) anchors.
        ref: (M, D) rows to compare them with.
        labels: (N,) integers.
        ref_labels: (M,) integers.
        own: row i of ``embeddings`` is row ``i + own`` of ``ref``, and no pair; None: they are other rows.
        temperature: positive number.
        normalize: divide each row by its Euclidean norm first.

    Returns:
        (N,) sums over each anchor's positives p of ``-log(exp(s_ip) / (exp(s_ip) + sum_n exp(s_in)))``, n
        being the rows of other labels; their number; and the number of those with a loss above 0.
    """
    if normalize:
        embeddings, ref = F.normalize(embeddings, dim=1), F.normalize(ref, dim=1)
    logits = embeddings @ ref.t() / temperature.to(embeddings.dtype)
    same = shared_labels(labels, ref_labels)
    itself = own_pairs(same, own)
    positive, lonely = same & ~itself, (same | itself).all(1)
    negatives = logits.masked_fill(same | itself, -torch.inf).masked_fill(lonely[:, None], 0)
    log_sum = negatives.logsumexp(1).masked_fill(lonely, -torch.inf)
    losses = -F.logsigmoid(logits - log_sum[:, None]).masked_fill(~positive, 0)
    return losses.sum(1), positive.sum(1), (losses > 0).sum(1)


def _against_others(z: Tensor, others: Tensor, own: int | None, temperature: Tensor) -> Tensor:
    """(N, M) similarities over the temperature, a row's own at the smallest number: its exponential is 0.

    Minus infinity would make the softmax of a single row, which has no others, not a number.
    """
    logits = z @ others.t() / temperature.to(z.dtype)
    return logits.masked_fill(own_pairs(logits, own), torch.finfo(logits.dtype).min)


def own_pairs(pairs: Tensor, own: int | None) -> Tensor:
    """Which of (N, M) pairs are i and ``i + own``: (N, M), or one False where own is None."""
    if own is None:
        return torch.zeros((), dtype=torch.bool, device=pairs.device)
    rows = torch.arange(pairs.shape[0], device=pairs.device)
    return (rows + own)[:, None] == torch.arange(pairs.shape[1], device=pairs.device)
