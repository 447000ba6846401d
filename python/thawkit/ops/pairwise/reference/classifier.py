"""The definition of a linear classifier's cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Cross-entropy of the logits ``input @ linear_weight.T + linear_bias``, as torch defines both.

    Args:
        input: (N, D).
        linear_weight: (C, ..., D): for each position ... one classifier of C classes.
        target: (N, ...) class indices or (N, C, ...) probabilities.
        linear_bias: (C, ...).
        weight: (C,) weights of the classes.
        reduction: the mean over indices divides by the sum of their weights, over probabilities by N.
        ignore_index: class index without a loss.
        label_smoothing: how much of each target is spread over all classes.

    Returns:
        Scalar or (N, ...).
    """
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    return F.cross_entropy(
        logits.reshape(input.shape[0], *linear_weight.shape[:-1]),
        target,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
