"""The supervised contrastive loss: checks, choice of backend."""

from __future__ import annotations

from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision, lifted, reduced_over


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
    _check_labels(labels, embeddings)
    checks.positive_scalar("temperature", temperature)
    temperature = checks.one_number("temperature", temperature, embeddings)
    checks.one_of("variant", variant, ("out", "in"))
    checks.reduced("embeddings", embeddings.shape[0], reduction)
    choose("supcon", {}, embeddings)
    with full_precision(embeddings):
        rows, anchor = reference.supcon(lifted(embeddings), labels, temperature, variant, normalize)
        return reduced_over(rows, reduction, anchor.sum())


def _check_labels(labels: Tensor, embeddings: Tensor) -> None:
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
