"""Losses for classes of very different sizes, as functions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thawkit.ops import focal as _focal

__all__ = [
    "class_balanced_loss",
    "class_balanced_weights",
    "ldam_loss",
    "ldam_margins",
    "logit_adjusted_loss",
]


def class_balanced_weights(samples_per_class: Tensor | Sequence[float], beta: float = 0.9999) -> Tensor:
    """Class weights by the effective number of samples (Cui et al. 2019, sec. 3 and 4; 1901.05555).

    ``w_c = (1 - beta) / (1 - beta^n_c)``, then scaled so that they add up to the number of classes, as in the
    paper.

    Args:
        samples_per_class: (C,) sizes n_c of the classes in the training set, at least 1.
        beta: from 0 (no weights) to below 1 (towards one over the size).

    Returns:
        (C,) float32 weights, float64 for float64 sizes.

    Raises:
        ThawkitError: sizes are not positive or not a vector, beta is out of range.
    """
    return _focal.imbalanced.class_balanced_weights(samples_per_class, beta)


def class_balanced_loss(
    logits: Tensor,
    target: Tensor,
    samples_per_class: Tensor | Sequence[float],
    *,
    loss: str = "softmax",
    beta: float = 0.9999,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Class-balanced loss (Cui et al. 2019; 1901.05555): the weight of a sample's class times its loss.

    With w of :func:`class_balanced_weights` and y the class of a sample, ``w_y`` times

    - ``softmax``: ``-log softmax(z)_y`` (sec. 4.1);
    - ``sigmoid``: ``-sum_c log p_c``, ``p_y = sigmoid(z_y)``, ``p_c = sigmoid(-z_c)`` for the others (4.2);
    - ``focal``: ``-sum_c (1 - p_c)^gamma log p_c`` with the same p (4.3).

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        samples_per_class: (C,) sizes of the classes in the training set, at least 1.
        loss: ``softmax``, ``sigmoid`` or ``focal``.
        beta: of the weights, from 0 to below 1.
        gamma: focusing exponent of ``focal``, at least 0.
        ignore_index: class of targets that are left out.
        reduction: ``none`` gives (N, ...) losses, each the sum over the classes, ``sum`` their sum, ``mean``
            the sum over the number of targets that are not ignored, at least 1.

    Returns:
        Scalar, or losses (N, ...): float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes, devices or targets do not fit, or a number is out of range.
    """
    weights = class_balanced_weights(_focal.imbalanced.precise(samples_per_class, logits), beta)
    return _focal.imbalanced.class_weighted(
        logits, target, weights, loss=loss, gamma=gamma, ignore_index=ignore_index, reduction=reduction
    )


def ldam_margins(samples_per_class: Tensor | Sequence[float], max_margin: float = 0.5) -> Tensor:
    """Margins of :func:`ldam_loss`: proportional to ``n_c^(-1/4)``, the largest ``max_margin``.

    Args:
        samples_per_class: (C,) sizes n_c of the classes in the training set, at least 1.
        max_margin: of the smallest class.

    Returns:
        (C,) float32 margins, float64 for float64 sizes.

    Raises:
        ThawkitError: sizes are not positive or not a vector, the margin is not finite.
    """
    return _focal.imbalanced.ldam_margins(samples_per_class, max_margin)


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    samples_per_class: Tensor | Sequence[float],
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Label-distribution-aware margin loss (Cao et al. 2019, sec. 3.2; 1906.07413).

    ``-log softmax(s (z - m_y e_y))_y``: the cross-entropy with the margin m_y of :func:`ldam_margins` taken
    off the logit of the sample's class y, times the scale s of the authors' code, which belongs to logits
    that are cosines.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        samples_per_class: (C,) sizes of the classes in the training set, at least 1.
        max_margin: of the smallest class.
        scale: s.
        weight: (C,) factors of the classes' losses, such as :func:`class_balanced_weights` for the later
            epochs (deferred re-weighting, algorithm 1).
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``; ``mean`` divides by the sum of the weights of the target
            classes, as in the authors' code.

    Returns:
        Scalar, or losses (N, ...): float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes, devices or targets do not fit, or a number is out of range.
    """
    return _focal.imbalanced.ldam(
        logits,
        target,
        ldam_margins(_focal.imbalanced.precise(samples_per_class, logits), max_margin),
        scale=scale,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def logit_adjusted_loss(
    logits: Tensor,
    target: Tensor,
    class_prior: Tensor | Sequence[float],
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Logit-adjusted softmax cross-entropy (Menon et al. 2021, eq. 10; 2007.07314).

    ``-log softmax(z + tau log prior)_y``. Trained so, the logits themselves are to be compared at test time.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        class_prior: (C,) shares of the classes in the training set, or their sizes: they are scaled to add up
            to 1. Positive.
        tau: strength; 1 is consistent with the balanced error, 0 is cross-entropy.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``; ``mean`` divides by the number of targets not ignored.

    Returns:
        Scalar, or losses (N, ...): float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes, devices or targets do not fit, or a number is out of range.
    """
    return _focal.imbalanced.logit_adjusted(
        logits, target, class_prior, tau=tau, ignore_index=ignore_index, reduction=reduction
    )
