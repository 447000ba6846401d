"""Stand-ins for the focal losses of ``mmcv.ops``, whose own run on CUDA only.

What differs: logarithms and their arguments are not cut off at the smallest normal number, so losses of
saturated logits are right; bfloat16 is taken; a label that is no class raises an error where theirs reads
past the end (with ``weight`` also the background's, C, of the sigmoid form); and gradients have gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import focal as _focal

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"]


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``mmcv.ops.sigmoid_focal_loss``: each row's class is positive, all others are negative.

    Args:
        input: (N, C) logits.
        target: (N,) int64 classes; C, or any other number that is no class, for background.
        gamma: focusing exponent.
        alpha: weight of positives, 1 - alpha of negatives.
        weight: (C,), a factor of the whole row by its class.
        reduction: ``none`` gives (N, C), ``sum`` their sum, ``mean`` that over N.

    Returns:
        Losses (N, C) in the dtype of ``input``, or a scalar (float32 for half precision).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a number is out of range.
    """
    _check(input, target, alpha, weight)
    rows = None
    if weight is not None:
        if checks.readable(target) and not bool(((target >= 0) & (target < input.shape[1])).all()):
            raise ThawkitError(
                f"target must hold classes 0 to {input.shape[1] - 1} where weight is given, "
                f"got {int(target.min())} to {int(target.max())}"
            )
        rows = weight[target.clamp(0, input.shape[1] - 1)].unsqueeze(1)
    return _focal.sigmoid_focal(
        input,
        target,
        alpha=alpha,
        gamma=gamma,
        weight=rows,
        normalizer=float(max(input.shape[0], 1)) if reduction == "mean" else None,
        reduction=reduction,
    )


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``mmcv.ops.softmax_focal_loss``: ``alpha weight_y (1 - p_y)^gamma (-log p_y)``.

    Args:
        input: (N, C) logits.
        target: (N,) int64 classes; negative ones cost nothing.
        gamma: focusing exponent.
        alpha: factor of all losses.
        weight: (C,) factors by class.
        reduction: ``none`` gives (N,), ``sum`` their sum, ``mean`` that over N, rows without a loss included.

    Returns:
        Losses (N,), or a scalar: float64 for float64 logits, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a class or number is out of range.
    """
    _check(input, target, alpha, weight)
    factors = input.new_full(input.shape[1:], float(alpha), dtype=torch.float64)
    if weight is not None:
        factors = factors * weight
    return _focal.softmax_focal(
        input,
        target.where(target >= 0, -100),
        gamma=gamma,
        alpha=factors.to(torch.promote_types(input.dtype, torch.float32)),
        normalizer="numel" if reduction == "mean" else None,
        reduction=reduction,
    )


def _check(input: Tensor, target: Tensor, alpha: float, weight: Tensor | None) -> None:
    checks.matrix("input", input)
    checks.labels("target", target, "input", input)
    if target.dtype != torch.int64:
        raise ThawkitError(f"target must hold int64 classes, got {target.dtype}")
    checks.finite("alpha", alpha)
    if weight is not None:
        checks.floating("weight", weight)
        if weight.shape != input.shape[1:]:
            raise ThawkitError(f"weight must have shape ({input.shape[1]},), got {tuple(weight.shape)}")


class SigmoidFocalLoss(nn.Module):
    """``mmcv.ops.SigmoidFocalLoss``; see :func:`sigmoid_focal_loss`."""

    weight: Tensor | None

    def __init__(self, gamma: float, alpha: float, weight: Tensor | None = None, reduction: str = "mean"):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.gamma = gamma
        self.alpha = alpha
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C) for the classes (N,)."""
        return sigmoid_focal_loss(input, target, self.gamma, self.alpha, self.weight, self.reduction)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"gamma={self.gamma}, alpha={self.alpha}, reduction={self.reduction}"


class SoftmaxFocalLoss(SigmoidFocalLoss):
    """``mmcv.ops.SoftmaxFocalLoss``; see :func:`softmax_focal_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C) for the classes (N,)."""
        return softmax_focal_loss(input, target, self.gamma, self.alpha, self.weight, self.reduction)
