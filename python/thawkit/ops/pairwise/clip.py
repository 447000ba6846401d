"""CLIP's loss: checks."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.pairwise.common import summand
from thawkit.ops.pairwise.pairs import pair_loss


def clip(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """CLIP's loss (Radford et al. 2021, fig. 3): ``text[i]`` belongs to ``image[i]``.

    Args:
        image: (N, D).
        text: (N, D) of the same dtype.
        logit_scale: inverse temperature, a number or a tensor of one element, which gets a gradient.
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
    checks.reduced("image", image.shape[0], reduction)
    weight = summand(reduction, image.shape[0])
    return pair_loss("clip", image, text, scale, None, normalize=normalize, weight=weight)
