"""The cross-entropy of a linear classifier as a function."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import pairwise as _pairwise

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    options: object = None,
) -> Tensor:
    """Cross-entropy of ``linear(input, linear_weight, linear_bias)``, a classifier and its loss in one.

    The values are those of ``torch.nn.functional.linear_cross_entropy`` (torch 2.13 and later), with these
    differences: input may have any number of leading dimensions, a float32 weight may stand beside
    half-precision input, products are never cast by autocast, and half precision has a float32 loss.

    Args:
        input: (..., D) samples.
        linear_weight: (C, D) one row a class, or (C, d_1, ..., d_K, D) for K-dimensional targets.
        target: int64 classes (...) or (..., d_1, ..., d_K), or probabilities of any floating dtype
            (..., C) or (..., C, d_1, ..., d_K), which get a gradient.
        linear_bias: (C,) or (C, d_1, ..., d_K).
        weight: (C,) factors of the classes' losses, which get no gradient.
        reduction: ``none`` gives a loss for each target. ``mean`` divides by the sum of the weights of the
            target classes that are not ignored (not a number where all are), and with probabilities by the
            number of targets.
        ignore_index: target class without a loss; None is -100. Not with probabilities. On the CPU, unless
            in float64, its rows have gradient 0 even where they hold NaN, which gives torch NaN.
        label_smoothing: share of each target that is spread evenly over the classes, from 0 to 1.
        options: taken for the sake of torch's callers and without effect. It sets the chunks and the
            precision of torch's own chunked form; here sums are in float32 (or float64) in any case.

    Returns:
        Scalar, or losses (...) or (..., d_1, ..., d_K): float64 for float64 inputs, else float32. On the
        CPU, unless in float64, logits, and so biases, beyond 2.3e38 in size count as infinite.

    Raises:
        ThawkitError: shapes, dtypes, devices or targets do not fit, a number is out of range, or there is
            nothing to take the mean of.
    """
    return _pairwise.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
