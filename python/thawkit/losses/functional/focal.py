"""Focal losses as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import focal as _focal
from thawkit.ops.focal import reference as _focal_reference

__all__ = ["focal_loss", "sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), a drop-in for ``torchvision.ops.sigmoid_focal_loss``.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1].
        alpha: weight of the positive class in [0, 1]; negative: no class weights.
        gamma: focusing exponent, at least 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Elementwise losses, or a scalar (float32 for half-precision inputs).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    return _focal.sigmoid_focal(inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss, softmax form: ``alpha_y (1 - p_y)^gamma (-log p_y)``. In plain PyTorch so far, not fused.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        alpha: (C,) class weights. The mean divides by the number of targets, not by their weights.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Scalar, or losses of the shape of ``target``.

    Raises:
        ThawkitError: types, shapes, dtypes or devices do not fit, a class index is out of range.
    """
    checks.floating("logits", logits)
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        came = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise ThawkitError(f"target must be a tensor of int64 class indices, got {came}")
    if logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ThawkitError(
            f"target must have the shape of logits {tuple(logits.shape)} without axis 1, "
            f"got {tuple(target.shape)}"
        )
    checks.same_device("target", target, "logits", logits)
    checks.finite("gamma", gamma)
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    checks.reduced("logits", target.numel(), reduction)
    classes = logits.shape[1]
    if (
        target.numel()
        and logits.device.type == "cpu"
        and not 0 <= int(target.min()) <= int(target.max()) < classes
    ):
        raise ThawkitError(
            f"target must hold class indices 0 to {classes - 1}, "
            f"got {int(target.min())} to {int(target.max())}"
        )
    if alpha is not None:
        if not isinstance(alpha, Tensor):
            raise ThawkitError(
                f"alpha must be a tensor of {classes} class weights, got {type(alpha).__name__}"
            )
        if alpha.shape != (classes,):
            raise ThawkitError(f"alpha must have shape ({classes},), got {tuple(alpha.shape)}")
        checks.same_device("alpha", alpha, "logits", logits)
    loss = _focal_reference.focal(logits, target, alpha, gamma)
    return loss if reduction == "none" else getattr(loss, reduction)()
