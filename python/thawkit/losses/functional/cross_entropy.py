"""Cross-entropy and binary cross-entropy of logits as functions: focal losses at gamma 0."""

from __future__ import annotations

from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import focal as _focal

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy in one pass, the values of :func:`torch.nn.functional.cross_entropy`.

    ``sum_c t_c w_c (-log p_c)`` with ``p = softmax(input)``; label smoothing e takes ``(1 - e) t + e / C``
    for the target t.

    Args:
        input: logits (C,), (N, C) or (N, C, ...).
        target: int64 class indices without the class axis, or probabilities in the shape of ``input``.
        weight: (C,) factors of the classes' losses.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``. ``mean`` divides by the sum of the weights of the target
            classes that are not ignored (not a number where all are), and with probabilities by the number of
            targets.
        label_smoothing: share of each target that is spread evenly over the classes, from 0 to 1.

    Returns:
        Scalar, or losses without the class axis: float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes or devices do not fit, a class index or number is out of range, or
            there is nothing to take the mean of.
    """
    return _focal.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy in one pass, :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    ``-weight (pos_weight t log p + (1 - t) log(1 - p))`` with ``p = sigmoid(input)``.

    Args:
        input: logits of any shape.
        target: the same shape, numbers in [0, 1].
        weight: factors of the losses, of a shape that broadcasts to ``input``.
        reduction: ``none``, ``mean`` or ``sum``; ``mean`` divides by the number of elements.
        pos_weight: factors of the positive parts, of a shape that broadcasts to ``input``: (C,) for classes
            in the last dimension.

    Returns:
        Losses in the dtype of ``input``, or in that of wider floating targets; or a scalar (float32 for half
        precision).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    if isinstance(target, Tensor) and isinstance(input, Tensor) and input.shape != target.shape:
        raise ThawkitError(
            f"target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    return _focal.sigmoid_focal(
        input, target, alpha=None, gamma=0.0, reduction=reduction, pos_weight=pos_weight, weight=weight
    )
