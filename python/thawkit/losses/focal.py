"""Focal losses as modules."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.ops import checks
from thawkit.ops.focal import normalizer as normalizers
from thawkit.ops.focal import options, softmax, weights


def kept(module: Loss, name: str, value: Tensor | float | str | None) -> None:
    """Keep a number as it is, and a tensor as a buffer, which follows the module to its device.

    A parameter stays one, so that ``parameters()`` has it.
    """
    if isinstance(value, torch.nn.Parameter):
        module.register_parameter(name, value)
    elif value is None or isinstance(value, Tensor):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


class SigmoidFocalLoss(Loss):
    """Focal loss of independent classes; see :func:`thawkit.losses.functional.sigmoid_focal_loss`.

    Args:
        alpha: weights of positives and negatives, a number or a tensor that broadcasts to the logits.
        gamma: focusing exponent.
        reduction: ``none``, ``mean`` or ``sum``.
        alpha_mode: ``balanced``, ``positive`` or ``per_class``.
        pos_weight: factor of the cross-entropy's positive part.
        ignore_index: target that is left out.
        normalizer: ``none``, ``numel``, ``valid``, ``positives`` or a positive number.

    Raises:
        ThawkitError: a number is out of range or a name unknown.
    """

    alpha: Tensor | float | None
    pos_weight: Tensor | float | None
    normalizer: str | Tensor | float | None

    def __init__(
        self,
        alpha: Tensor | float | None = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        *,
        alpha_mode: str = "balanced",
        pos_weight: Tensor | float | None = None,
        ignore_index: int | None = None,
        normalizer: str | Tensor | float | None = None,
    ):
        super().__init__()
        options.check(gamma)
        if ignore_index is not None:
            checks.integer("ignore_index", ignore_index)
        normalizers.check(normalizer, reduction, "inputs", 1)
        weights.check(alpha, alpha_mode, pos_weight)
        kept(self, "alpha", alpha)
        self.gamma = gamma
        self.reduction = reduction
        self.alpha_mode = alpha_mode
        kept(self, "pos_weight", pos_weight)
        self.ignore_index = ignore_index
        kept(self, "normalizer", normalizer)

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of logits against targets in [0, 1] of the same shape, where ``mask`` is True.

        Targets may be class indices without the last dimension too.
        """
        return F.sigmoid_focal_loss(
            inputs,
            targets,
            self.alpha,
            self.gamma,
            self.reduction,
            alpha_mode=self.alpha_mode,
            pos_weight=self.pos_weight,
            mask=mask,
            ignore_index=self.ignore_index,
            normalizer=self.normalizer,
        )


class FocalLoss(Loss):
    """Focal loss of exclusive classes; see :func:`thawkit.losses.functional.focal_loss`.

    Args:
        gamma: focusing exponent.
        alpha: (C,) class weights, or a number with another ``alpha_mode``.
        reduction: ``none``, ``mean`` or ``sum``.
        alpha_mode: ``per_class``, ``balanced`` or ``positive``.
        label_smoothing: share of each target that is spread evenly over the classes.
        ignore_index: class of targets that are left out.
        normalizer: ``none``, ``numel``, ``valid``, ``positives`` or a positive number.

    Raises:
        ThawkitError: a number is out of range or a name unknown.
    """

    alpha: Tensor | float | None
    normalizer: str | Tensor | float | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Tensor | float | None = None,
        reduction: str = "mean",
        *,
        alpha_mode: str = "per_class",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: str | Tensor | float | None = None,
    ):
        super().__init__()
        checks.integer("ignore_index", ignore_index)
        options.check(gamma, label_smoothing)
        normalizers.check(normalizer, reduction, "logits", 1)
        checks.one_of("alpha_mode", alpha_mode, softmax.ALPHA_MODES)
        self.gamma = gamma
        if alpha is not None and alpha_mode == "per_class":
            alpha = torch.as_tensor(alpha)
        kept(self, "alpha", alpha)
        self.reduction = reduction
        self.alpha_mode = alpha_mode
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        kept(self, "normalizer", normalizer)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...) or probabilities."""
        return F.focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            reduction=self.reduction,
            alpha_mode=self.alpha_mode,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            normalizer=self.normalizer,
        )
