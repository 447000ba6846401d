"""Softmax cross-entropy on the focal kernel, with torch's mean; scaled, offset and with margins too."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.focal.normalizer import Exactly, Normalizer
from thawkit.ops.focal.softmax import IGNORED, class_weights, softmax_focal


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = IGNORED,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    offset: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``scale input + offset``, from which the target's class loses its ``margin``.

    See :func:`thawkit.losses.functional.cross_entropy`. A mean over class indices divides by the sum of their
    weights, as torch's does.

    Raises:
        ThawkitError: types, shapes, dtypes, devices or targets do not fit, or a number is out of range.
    """
    checks.floating("input", input)
    single = input.dim() == 1
    if single and isinstance(target, Tensor):
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    normalizer: Normalizer = None
    if reduction == "mean" and isinstance(target, Tensor) and not target.is_floating_point():
        normalizer = Exactly(_counted(input, target, weight, ignore_index))
    loss = softmax_focal(
        input,
        target,
        gamma=0.0,
        alpha=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        normalizer=normalizer,
        reduction=reduction,
        scale=scale,
        offset=offset,
        margin=margin,
    )
    return loss.squeeze(0) if single and reduction == "none" else loss


def _counted(input: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    counted = target != ignored
    if weight is None or input.dim() < 2 or input.shape[1] == 0:
        return counted.sum(dtype=torch.float32)
    weights = class_weights(input, weight, "per_class")
    assert weights is not None
    # an index that is no class is found by the kernel
    known = target.where(counted, 0).clamp(0, input.shape[1] - 1)
    return (
        weights.detach()[known].where(counted, 0).sum(dtype=torch.promote_types(weights.dtype, torch.float32))
    )
