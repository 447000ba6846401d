"""The supervised contrastive loss: checks, and what of it the engine computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as normalized

from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision, lifted, reduced_over
from thawkit.ops.pairwise.positives import Pairs, checked_pairs
from thawkit.ops.pairwise.ref import check_ref_rows, own_offset
from thawkit.ops.pairwise.row_softmax import OBJECTIONS, Columns, row_softmax


def supcon(
    embeddings: Tensor,
    labels: Tensor | None,
    temperature: Tensor | float,
    *,
    variant: str = "out",
    normalize: bool = True,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | None = None,
    pair_weight: Tensor | None = None,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eqs. 2 and 3): rows of a class attract each other.

    Args:
        embeddings: (N, D).
        labels: (N,) integers, or an (N, L) matrix of zeros and ones: pairs weigh by the labels they share.
        temperature: a positive number, or a tensor of one element, which gets a gradient.
        variant: ``out`` (eq. 2) or ``in`` (eq. 3).
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses; ``mean`` is over the rows that have a positive.
        ref: (M, D) rows of the same dtype to compare with instead of the other embeddings.
        ref_labels: (M,) or (M, L), with ``ref`` and ``labels``.
        own: row i of ``embeddings`` is row ``own + i`` of ``ref``, with which it makes no pair.
        pair_weight: (B, C) weights of pairs in place of labels; row i and row j of what it is compared with
            weigh ``pair_weight[i % B, j % C]``. Without a gradient.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, the temperature is not positive, an
            unknown name, or there is nothing to take the mean of.
    """
    checks.matrix("embeddings", embeddings)
    if ref is not None:
        check_ref_rows(embeddings, ref)
    own = own_offset(own, embeddings, ref)
    pairs = checked_pairs(embeddings, ref, labels, ref_labels, pair_weight)
    checks.positive_scalar("temperature", temperature)
    temperature = checks.one_number("temperature", temperature, embeddings)
    checks.one_of("variant", variant, ("out", "in"))
    checks.reduced("embeddings", embeddings.shape[0], reduction)
    others = embeddings if ref is None else ref
    backend = choose("supcon", OBJECTIONS, embeddings, others)
    with full_precision(embeddings):
        if backend == "reference" or (variant == "in" and not pairs.by_class):
            # there the weights of pairs are inside the logarithm, and no sums over classes stand for them
            weight = pairs.matrix(embeddings, others)
            rows, anchor = reference.supcon(
                lifted(embeddings), lifted(others), weight, own, temperature, variant, normalize
            )
            return reduced_over(rows, reduction, anchor.sum())
        # several gradients of the rows add up: they are rounded to half precision afterwards
        embeddings = lifted(embeddings)
        others = embeddings if ref is None else lifted(ref)
        if normalize:
            embeddings = normalized(embeddings, dim=1)
            others = embeddings if ref is None else normalized(others, dim=1)
        return _on_the_engine(embeddings, others, own, pairs, 1 / lifted(temperature), variant, reduction)


def _on_the_engine(
    embeddings: Tensor,
    others: Tensor,
    own: int | None,
    pairs: Pairs,
    scale: Tensor,
    variant: str,
    reduction: str,
) -> Tensor:
    """Softmax over all rows by the engine; what the positives add are sums, in O(N D)."""
    positives = pairs.positives(embeddings, others, own)
    anchor = positives.weight > 0
    weight = positives.weight.where(anchor, 1)
    reduce = reduction != "none"
    row_weight = anchor.to(weight.dtype) / (anchor.sum().clamp_min(1) if reduction == "mean" else 1)
    options: dict[str, Any] = {"reduce": reduce}
    if reduce:
        options["row_weight"] = row_weight
    if variant == "in":
        options["target"] = torch.full_like(anchor, -1, dtype=torch.int64)
        everyone = row_softmax(embeddings, others, scale, columns=Columns(excluded=own), **options)
        assert positives.classes is not None  # else the definition has computed it
        mine, theirs = positives.classes
        same = Columns(excluded=own, labels="keep same")
        near = row_softmax(
            embeddings, others, scale, row_labels=mine, key_labels=theirs, columns=same, **options
        )
        level = -weight.log()
        loss = everyone - near - ((row_weight * level).sum() if reduce else level)
    else:
        # The loss as if one positive were the only one, which has all its digits where it is nearly 0, and by
        # how much the mean of all positives is less similar. A row that has one only has nothing to add.
        target, heaviest = pairs.heaviest(embeddings, others, own)
        alone = row_softmax(
            embeddings, others, scale, target=target, columns=Columns(excluded=own), **options
        )
        several = (heaviest < positives.weight)[:, None]
        nearer = others.index_select(0, target.clamp_min(0)) if len(others) else positives.rows
        gap = (nearer - positives.rows / weight[:, None]).where(several, 0)
        more = scale * (embeddings * gap).sum(1)
        loss = alone + ((row_weight * more).sum() if reduce else more)
    return loss if reduce else loss.where(anchor, 0)
