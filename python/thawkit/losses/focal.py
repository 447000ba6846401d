"""Focal losses as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.losses import functional as F


class SigmoidFocalLoss(nn.Module):
    """Focal loss of independent classes; see :func:`thawkit.losses.functional.sigmoid_focal_loss`."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits against targets in [0, 1] of the same shape."""
        return F.sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)


class FocalLoss(nn.Module):
    """Focal loss of exclusive classes; see :func:`thawkit.losses.functional.focal_loss`."""

    alpha: Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: Tensor | None = None, reduction: str = "mean"):
        super().__init__()
        self.gamma = gamma
        self.reduction = reduction
        self.register_buffer("alpha", None if alpha is None else torch.as_tensor(alpha))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...)."""
        return F.focal_loss(logits, target, gamma=self.gamma, alpha=self.alpha, reduction=self.reduction)
