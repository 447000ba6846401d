"""The supervised contrastive loss: checks, and what of it the engine computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, reference
from thawkit.ops.pairwise.common import full_precision, lifted, numbered, reduced_over
from thawkit.ops.pairwise.row_softmax import Columns, row_softmax

OBJECTIONS = {"cpu": cpu.objection}


def supcon(
    embeddings: Tensor,
    labels: Tensor,
    temperature: Tensor | float,
    *,
    variant: str = "out",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eqs. 2 and 3): rows of a class attract each other.

    Args:
        embeddings: (N, D).
        labels: (N,) integers, or an (N, L) matrix of zeros and ones: pairs weigh by the labels they share.
        temperature: a positive number, or a tensor of one element, which gets a gradient.
        variant: ``out`` (eq. 2) or ``in`` (eq. 3).
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses; ``mean`` is over the rows that have a positive.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, the temperature is not positive, an
            unknown name, or there is nothing to take the mean of.
    """
    checks.matrix("embeddings", embeddings)
    check_labels(labels, embeddings)
    checks.positive_scalar("temperature", temperature)
    temperature = checks.one_number("temperature", temperature, embeddings)
    checks.one_of("variant", variant, ("out", "in"))
    checks.reduced("embeddings", embeddings.shape[0], reduction)
    backend = choose("supcon", OBJECTIONS, embeddings)
    if backend == "reference" or (labels.dim() == 2 and variant == "in"):
        # there the weights of pairs are inside the logarithm, and no sums over classes stand for them
        with full_precision(embeddings):
            rows, anchor = reference.supcon(lifted(embeddings), labels, temperature, variant, normalize)
            return reduced_over(rows, reduction, anchor.sum())
    with full_precision(embeddings):
        return _on_the_engine(embeddings, labels, 1 / lifted(temperature), variant, normalize, reduction)


def _on_the_engine(
    embeddings: Tensor, labels: Tensor, scale: Tensor, variant: str, normalize: bool, reduction: str
) -> Tensor:
    """Log-sum-exp over the others by the engine; what the positives add are sums over classes, O(N D)."""
    if normalize:
        embeddings = torch.nn.functional.normalize(lifted(embeddings), dim=1)
    rows = embeddings.shape[0]
    if labels.dim() == 1:
        own = numbered(labels)
        positives = torch.zeros_like(own).index_add(0, own, torch.ones_like(own))[own] - 1
    else:
        shared = labels.to(torch.float32)
        positives = shared @ shared.sum(0) - shared.square().sum(1)
    anchor = positives > 0
    reduce = reduction != "none"
    count = anchor.sum().clamp_min(1) if reduction == "mean" else 1
    row_weight = anchor / count
    options: dict[str, Any] = {"target": torch.full((rows,), -1), "reduce": reduce}
    if reduce:
        options["row_weight"] = row_weight
    others = row_softmax(embeddings, embeddings, scale, columns=Columns(excluded=0), **options)
    if variant == "in":
        same = Columns(excluded=0, labels="keep same")
        own = own.to(torch.int32)
        near = row_softmax(
            embeddings, embeddings, scale, row_labels=own, key_labels=own, columns=same, **options
        )
        level = -positives.clamp_min(1).to(torch.float32).log()
        level = (row_weight * level).sum() if reduce else level
        loss = others - near - level
    else:
        z = embeddings.float()
        if labels.dim() == 1:
            sums = torch.zeros_like(z).index_add(0, own, z)[own] - z
        else:
            sums = shared @ (shared.t() @ z) - shared.square().sum(1, keepdim=True) * z
        level = scale * (z * sums).sum(1) / positives.clamp_min(1)
        loss = others - ((row_weight * level).sum() if reduce else level)
    return loss if reduce else loss.where(anchor, 0)


def check_labels(labels: Tensor, embeddings: Tensor) -> None:
    """Require (N,) integers or an (N, L) matrix of zeros and ones, for (N, D) embeddings."""
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        checks.labels("labels", labels, "embeddings", embeddings)
        return
    if labels.shape[0] != embeddings.shape[0]:
        raise ThawkitError(
            f"labels must have shape ({embeddings.shape[0]},) or ({embeddings.shape[0]}, L), "
            f"got {tuple(labels.shape)}"
        )
    checks.same_device("labels", labels, "embeddings", embeddings)
    if checks.readable(labels) and not bool(((labels == 0) | (labels == 1)).all()):
        raise ThawkitError("labels of shape (N, L) must hold zeros and ones only")
