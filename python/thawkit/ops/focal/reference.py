"""The definition of the focal losses, in plain PyTorch: any device and dtype, differentiable any times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal(
    inputs: Tensor,
    targets: Tensor,
    positive: Tensor | float,
    negative: Tensor | float,
    gamma: float,
    pos_weight: Tensor | float = 1.0,
    smoothing: float = 0.0,
    separate: bool = False,
) -> Tensor:
    """Elementwise ``a_t (1 - p_t)^gamma ce`` (Lin et al. 2017, eq. 5; 1708.02002), torchvision's formula.

    ``p_t = p t + (1 - p) (1 - t)``, ``a_t = positive t + negative (1 - t)``.

    Args:
        inputs: logits of any shape.
        targets: numbers in [0, 1] of the same shape and dtype.
        positive: weight of the positive class, broadcast to ``inputs``.
        negative: weight of the negative class.
        gamma: focusing exponent.
        pos_weight: factor of the cross-entropy's positive part ``-t log p``.
        smoothing: the cross-entropy, and nothing else, takes ``t (1 - smoothing) + smoothing / 2`` for t.
        separate: ``positive t L_1 + negative (1 - t) L_0`` instead, of the losses L_1 and L_0 of targets of 1
            and 0. For targets of 0 and 1 that is the same.
    """
    p = torch.sigmoid(inputs)
    if separate:
        q = torch.sigmoid(-inputs)
        one = pos_weight * positive * targets * _power(q, gamma) * -F.logsigmoid(inputs)
        return one + negative * (1 - targets) * _power(p, gamma) * -F.logsigmoid(-inputs)
    soft = targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
    ce = F.binary_cross_entropy_with_logits(inputs, soft, reduction="none")
    if isinstance(pos_weight, Tensor) or pos_weight != 1:  # torch's own has no gradient for it
        ce = ce - (pos_weight - 1) * soft * F.logsigmoid(inputs)
    loss = ce * _power(1 - (p * targets + (1 - p) * (1 - targets)), gamma)
    return (positive * targets + negative * (1 - targets)) * loss


def softmax_focal(
    logits: Tensor,
    target: Tensor,
    alpha: Tensor | None,
    gamma: float,
    smoothing: float = 0.0,
    ignore_index: int = -100,
    scale: float = 1.0,
    offset: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Softmax form of each position: ``sum_c t_c alpha_c (1 - p_c)^gamma (-log p_c)``, (N, ...).

    ``p`` is the softmax of ``scale logits + offset``, from which the target's class loses its ``margin``.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...), each the t that is 1 there and 0 elsewhere, or probabilities t
            in the shape of ``logits``.
        alpha: (C,) class weights or None.
        gamma: focusing exponent.
        smoothing: ``(1 - smoothing) t + smoothing / C`` takes the place of t.
        ignore_index: the index of positions that have no loss.
        scale: factor of the logits.
        offset: (C,), added to the logits.
        margin: (C,), with class indices.
    """
    classes = logits.shape[1]
    along = (-1,) + (1,) * (logits.dim() - 2)
    valid = None
    if target.is_floating_point():
        t = target.to(logits.dtype)
    else:
        valid = target != ignore_index
        target = target.where(valid, 0)
        logits = logits.where(valid.unsqueeze(1), 0)
        t = None
    z = logits if scale == 1 else logits * scale
    if offset is not None:
        z = z + offset.to(z.dtype).reshape(along)
    if margin is not None:
        z = z.scatter_add(1, target.unsqueeze(1), -margin.to(z.dtype)[target].unsqueeze(1))
    log_p = F.log_softmax(z, dim=1)
    if t is None and not smoothing:
        log_p = log_p.gather(1, target.unsqueeze(1))
        weight = 1.0 if alpha is None else alpha.to(z.dtype)[target].unsqueeze(1)
    else:
        weight = torch.zeros_like(z).scatter(1, target.unsqueeze(1), 1) if t is None else t
        weight = (1 - smoothing) * weight + smoothing / classes
        weight = weight if alpha is None else weight * alpha.to(z.dtype).reshape(along)
    loss = (-_power(-torch.expm1(log_p), gamma) * log_p * weight).sum(1)
    return loss if valid is None else loss.where(valid, 0)


def _power(base: Tensor, gamma: float) -> Tensor:
    """``base ** gamma`` for base >= 0 whose gradient stays finite at 0 for gamma < 1 too."""
    if not 0 < gamma < 1:
        return base**gamma
    # clamp_min has no gradient at 0; with the second term one that is NaN goes on
    return base.clamp_min(torch.finfo(base.dtype).tiny) ** gamma + 0 * base
