"""Stand-in for ``apex.contrib.focal_loss.focal_loss``, whose own runs on CUDA only.

What differs: any number of classes is taken, not only multiples of 4 or 8, bfloat16 too; gradients are in
full precision until they are divided by the number of positives; and the saved gradient is not changed by the
backward pass, so a second one is right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import focal as _focal
from thawkit.ops.focal.normalizer import Exactly

__all__ = ["FocalLoss", "focal_loss"]

IGNORED = -2


def focal_loss(
    cls_output: Tensor,
    cls_targets_at_level: Tensor,
    num_positive_sum: Tensor,
    num_real_classes: int,
    alpha: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``apex.contrib.focal_loss.focal_loss``: the summed sigmoid focal loss over the number of positives.

    Label smoothing s changes the cross-entropy's targets only, to ``1 - s / 2`` and ``s / 2``: alpha and the
    modulating factor are those of the hard targets.

    Args:
        cls_output: (..., C) logits; classes from ``num_real_classes`` on are padding and cost nothing.
        cls_targets_at_level: (...) int64 classes, -1 for background, -2 for what is ignored.
        num_positive_sum: one number that the sum is divided by.
        num_real_classes: at most C.
        alpha: weight of positives, 1 - alpha of negatives.
        gamma: focusing exponent.
        label_smoothing: s, from 0 to 1.

    Returns:
        Scalar: float64 for float64 logits, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a number is out of range.
    """
    checks.floating("cls_output", cls_output)
    if cls_output.dim() < 1:
        raise ThawkitError("cls_output must have shape (..., C), got ()")
    targets = cls_targets_at_level
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        came = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ThawkitError(f"cls_targets_at_level must be a tensor of int64 classes, got {came}")
    if targets.shape != cls_output.shape[:-1]:
        raise ThawkitError(
            f"cls_targets_at_level must have the shape of cls_output {tuple(cls_output.shape)} without its "
            f"last axis, got {tuple(targets.shape)}"
        )
    if not isinstance(num_positive_sum, Tensor) or num_positive_sum.numel() != 1:
        raise ThawkitError("num_positive_sum must be a tensor of one number")
    checks.integer("num_real_classes", num_real_classes, 1)
    classes = cls_output.shape[-1]
    if num_real_classes > classes:
        raise ThawkitError(f"num_real_classes must be at most {classes}, got {num_real_classes}")
    real = None
    if num_real_classes < classes:
        real = (torch.arange(classes, device=cls_output.device) < num_real_classes).to(torch.float32)
    return _focal.sigmoid_focal(
        cls_output,
        targets,
        alpha=alpha,
        gamma=gamma,
        weight=real,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        normalizer=Exactly(num_positive_sum),
        reduction="sum",
    )


class FocalLoss:
    """``apex.contrib.focal_loss.FocalLoss``, of which only ``apply`` is called."""

    apply = staticmethod(focal_loss)
