"""Stand-ins for kornia's focal losses (``kornia.losses``).

What differs: half precision is computed and summed in float32, and what stands at ignored positions does not
matter, NaN included. ``alpha`` and ``gamma`` are checked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import focal as _focal

__all__ = ["BinaryFocalLossWithLogits", "FocalLoss", "binary_focal_loss_with_logits", "focal_loss"]


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """``kornia.losses.focal_loss``: softmax form, class 0 being the background.

    Args:
        pred: (N, C, ...) logits.
        target: (N, ...) int64 classes.
        alpha: weight of all classes but class 0, which weighs 1 - alpha; None: no weights.
        gamma: focusing exponent.
        reduction: ``none`` gives (N, C, ...) with the loss in the slice of the target's class and 0
            elsewhere, ``sum`` the sum, ``mean`` that over the number of elements of ``pred``.
        weight: (C,) further factors by class.
        ignore_index: class of targets without a loss, which a mean counts all the same; None: there is none.

    Returns:
        Losses (N, C, ...) or a scalar: float64 for float64 logits, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a class or number is out of range.
    """
    checks.floating("pred", pred)
    if pred.dim() < 2 or pred.shape[1] == 0:
        raise ThawkitError(f"pred must have shape (N, C, ...), C not 0, got {tuple(pred.shape)}")
    if isinstance(target, Tensor) and target.is_floating_point():
        raise ThawkitError(f"target must hold int64 classes, got {target.dtype}")
    mode = "per_class" if alpha is None else "balanced"
    factors = _focal.softmax.class_weights(pred, alpha, mode)
    if weight is not None:
        _check_vector("weight", weight, pred)
        factors = weight if factors is None else factors * weight
    ignored = -100 if ignore_index is None else ignore_index
    if ignore_index is None and isinstance(target, Tensor):
        target = target.where(target != ignored, -1)  # no class, as any other negative number
    loss = _focal.softmax_focal(
        pred,
        target,
        gamma=gamma,
        alpha=factors,
        ignore_index=ignored,
        normalizer=float(max(pred.numel(), 1)) if reduction == "mean" else None,
        reduction=reduction,
    )
    if reduction != "none":
        return loss
    at = target.where(target != ignored, 0).unsqueeze(1)
    return torch.zeros_like(pred, dtype=loss.dtype).scatter(1, at, loss.unsqueeze(1))


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """``kornia.losses.binary_focal_loss_with_logits``.

    A soft target t costs t times the loss of 1 plus 1 - t times the loss of 0; torchvision's form differs
    there.

    Args:
        pred: (N, C, ...) logits.
        target: the same shape, numbers in [0, 1].
        alpha: weight of the positive term, 1 - alpha of the negative one; None: no weights.
        gamma: focusing exponent.
        reduction: ``none``, ``sum``, or ``mean`` over all elements, ignored ones included.
        pos_weight: (C,) factors of the positive terms.
        weight: (C,) factors of the losses.
        ignore_index: target without a loss; None: there is none.

    Returns:
        Losses in the dtype of ``pred``, or in that of wider floating targets; or a scalar (float32 for half
        precision).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a number is out of range.
    """
    checks.floating("pred", pred)
    if pred.dim() < 2:
        raise ThawkitError(f"pred must have shape (N, C, ...), got {tuple(pred.shape)}")
    if isinstance(target, Tensor) and target.shape != pred.shape:
        raise ThawkitError(
            f"target must have the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}"
        )
    if alpha is not None:
        checks.finite("alpha", alpha)
        if not 0 <= alpha <= 1:
            raise ThawkitError(f"alpha must be in [0, 1] or None, got {alpha}")
    along = (-1,) + (1,) * (pred.dim() - 2)
    for name, vector in (("pos_weight", pos_weight), ("weight", weight)):
        if vector is not None:
            _check_vector(name, vector, pred)
    return _focal.sigmoid_focal(
        pred,
        target,
        alpha=alpha,
        gamma=gamma,
        pos_weight=None if pos_weight is None else pos_weight.reshape(along),
        weight=None if weight is None else weight.reshape(along),
        ignore_index=ignore_index,
        normalizer="numel" if reduction == "mean" else None,
        reduction=reduction,
        separate=True,
    )


def _check_vector(name: str, x: Tensor, pred: Tensor) -> None:
    checks.floating(name, x)
    if x.shape != pred.shape[1:2]:
        raise ThawkitError(f"{name} must have shape ({pred.shape[1]},), got {tuple(x.shape)}")
    checks.same_device(name, x, "pred", pred)


def _keep(module: nn.Module, name: str, x: Tensor | None) -> None:
    """Keep a parameter as one, anything else as a buffer outside of the state."""
    if isinstance(x, nn.Parameter):
        module.register_parameter(name, x)
    else:
        module.register_buffer(name, x, persistent=False)


class FocalLoss(nn.Module):
    """``kornia.losses.FocalLoss``; see :func:`focal_loss`."""

    weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        _keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) for the classes (N, ...)."""
        return focal_loss(
            pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index
        )


class BinaryFocalLossWithLogits(nn.Module):
    """``kornia.losses.BinaryFocalLossWithLogits``; see :func:`binary_focal_loss_with_logits`."""

    pos_weight: Tensor | None
    weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        _keep(self, "pos_weight", pos_weight)
        _keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against targets in [0, 1] of the same shape."""
        return binary_focal_loss_with_logits(
            pred,
            target,
            self.alpha,
            self.gamma,
            self.reduction,
            self.pos_weight,
            self.weight,
            self.ignore_index,
        )
