"""SigLIP's loss: checks."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.pairwise.common import summand
from thawkit.ops.pairwise.pairs import pair_loss


def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid loss of all pairs (Zhai et al. 2023, algorithm 1): ``text[i]`` belongs to ``image[i]``.

    Args:
        image: (N, D).
        text: (N, D) of the same dtype.
        logit_scale: multiplies the similarities, a number or a tensor of one element, which gets a gradient.
        logit_bias: added to them, likewise.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    checks.matrix("image", image)
    checks.twin("text", text, "image", image)
    scale = checks.one_number("logit_scale", logit_scale, image)
    bias = checks.one_number("logit_bias", logit_bias, image)
    checks.reduced("image", image.shape[0], reduction)
    weight = summand(reduction, image.shape[0])
    return pair_loss("siglip", image, text, scale, bias, normalize=normalize, weight=weight)


def siglip_with_some(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    offset: int | None,
    normalize: bool,
    weight: float | None,
) -> Tensor:
    """Return what some of the texts add to the losses of the rows of ``image``.

    Args:
        image: (N, D).
        text: (M, D) of the same dtype, some or all of the batch's texts.
        scale: scalar tensor that multiplies the similarities.
        bias: scalar tensor added to them.
        offset: ``text[i + offset]`` belongs to ``image[i]``; None: no text belongs to any.
        normalize: divide each row by its Euclidean norm first.
        weight: factor of the rows' sum; None: no sum, but (N,) losses.
    """
    return pair_loss("siglip", image, text, scale, bias, normalize=normalize, weight=weight, offset=offset)
