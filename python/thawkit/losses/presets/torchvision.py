"""Stand-in for ``torchvision.ops.sigmoid_focal_loss``.

Gradients stay finite for ``0 < gamma < 1`` where logits saturate, which torchvision's do not, and its sums
are in float32 for half precision.
"""

from __future__ import annotations

from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import checks

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss``: alpha weighs positives and 1 - alpha negatives.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1].
        alpha: from 0 to 1, or -1 for no weights.
        gamma: focusing exponent.
        reduction: ``none``, ``mean`` (over all elements) or ``sum``.

    Returns:
        Elementwise losses in the dtype of ``inputs``, or in that of wider floating targets; or a scalar
        (float32 for half precision).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a number is out of range.
    """
    checks.finite("alpha", alpha)
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ThawkitError(f"alpha must be in [0, 1] or -1 for no weights, got {alpha}")
    if isinstance(targets, Tensor) and isinstance(inputs, Tensor) and targets.shape != inputs.shape:
        raise ThawkitError(
            f"targets must have the shape of inputs, {tuple(inputs.shape)}, got {tuple(targets.shape)}"
        )
    return F.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
