"""Cross-entropy losses of logits as modules."""

from __future__ import annotations

from torch import Tensor

from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.ops import checks


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy; see :func:`thawkit.losses.functional.cross_entropy`.

    Args:
        weight: (C,) factors of the classes' losses.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``.
        label_smoothing: share of each target that is spread evenly over the classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...) or probabilities."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy; see :func:`thawkit.losses.functional.binary_cross_entropy_with_logits`.

    Args:
        weight: factors of the losses, broadcast to the logits.
        reduction: ``none``, ``mean`` or ``sum``.
        pos_weight: factors of the positive parts, broadcast to the logits.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, *, reduction: str = "mean", pos_weight: Tensor | None = None
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits against targets in [0, 1] of the same shape."""
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )
