"""Contrastive losses as functions."""

from __future__ import annotations

from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise

__all__ = ["clip", "info_nce"]


def info_nce(
    q: Tensor,
    k: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): each query against its own key and all others.

    The matrix of similarities is never stored, and with ``reduction="mean"`` or ``"sum"`` the gradients are
    ready when the loss is. A frozen side costs no gradient product.

    Args:
        q: (N, D) queries, e.g. embeddings of one view.
        k: (M, D) keys, M >= N; ``k[i]`` is the positive of ``q[i]``, keys past N are extra negatives.
        logit_scale: inverse temperature; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    return _pairwise.info_nce(q, k, logit_scale, normalize=normalize, reduction=reduction)


def clip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """CLIP's loss (Radford et al. 2021, fig. 3): InfoNCE in both directions, averaged.

    The two directions are two passes of the pairwise engine so far, which do not share their similarities.

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
    checks.matrix("image", image)
    checks.matrix("text", text)
    checks.same_device("text", text, "image", image)
    if image.shape != text.shape:
        raise ThawkitError(
            f"text must have the shape of image, {tuple(image.shape)}, got {tuple(text.shape)}"
        )
    if image.dtype != text.dtype:
        raise ThawkitError(f"text must have the dtype of image, {image.dtype}, got {text.dtype}")
    to_text = info_nce(image, text, logit_scale=logit_scale, normalize=normalize, reduction=reduction)
    to_image = info_nce(text, image, logit_scale=logit_scale, normalize=normalize, reduction=reduction)
    return (to_text + to_image) / 2
