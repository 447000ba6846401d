"""The definition of the focal losses, in plain PyTorch: any device and dtype, differentiable any times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Elementwise ``a_t (1 - p_t)^gamma ce`` (Lin et al. 2017, eq. 5; 1708.02002), torchvision's formula.

    Args:
        inputs: logits of any shape.
        targets: numbers in [0, 1] of the same shape and dtype.
        alpha: weight of the positive class, 1 - alpha of the negative; negative: no weights.
        gamma: focusing exponent.
    """
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    loss = ce * _power(1 - (p * targets + (1 - p) * (1 - targets)), gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss


def focal(logits: Tensor, target: Tensor, alpha: Tensor | None, gamma: float) -> Tensor:
    """Softmax form of each sample: ``alpha_y (1 - p_y)^gamma (-log p_y)``.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        alpha: (C,) class weights or None.
        gamma: focusing exponent.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
    loss = -_power(-torch.expm1(log_p), gamma) * log_p
    return loss if alpha is None else loss * alpha.to(loss.dtype)[target]


def _power(base: Tensor, gamma: float) -> Tensor:
    """``base ** gamma`` for base >= 0 whose gradient stays finite at 0 for gamma < 1 too."""
    return base.clamp_min(torch.finfo(base.dtype).tiny) ** gamma if 0 < gamma < 1 else base**gamma
