"""Focal losses as functions."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import focal as _focal

__all__ = ["focal_loss", "sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    alpha_mode: str = "balanced",
    pos_weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = None,
    normalizer: str | Tensor | float | None = None,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5; 1708.02002), a drop-in for torchvision's.

    Each logit x with its target t costs ``a_t (1 - p_t)^gamma ce`` with ``p = sigmoid(x)``,
    ``p_t = p t + (1 - p) (1 - t)`` and ``ce = -pos_weight t log p - (1 - t) log(1 - p)``. Soft targets
    enter all three factors, as in torchvision. Log p and log(1 - p) are computed as such, so nothing
    saturates, and half precision is computed in float32. Floating targets that are wider than the logits are
    not rounded: as in torch the logits are cast to the wider dtype, float64 included.

    **What a reduction divides by.** ``sum`` adds up, ``mean`` adds up and divides by the normalizer. Without
    one a mean divides by the number of losses that are not left out, and nothing else divides by anything;
    with one ``mean`` and ``sum`` both are the sum over the normalizer, and ``none`` gives each loss over it.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1]. Or, for exclusive classes without their one-hot tensor,
            int64 of the shape of ``inputs`` without its last dimension, which is that of the classes: the
            class whose target is 1. Any number outside of 0 to C - 1 is background, none of them.
        alpha: a number, or a tensor that broadcasts to ``inputs``, such as (C,) for classes in the last
            dimension. None, and numbers and elements below 0: no weights; with ``per_class`` elements are at
            least 0. What a tensor holds is checked on the CPU only.
        gamma: focusing exponent, at least 0; 0 is binary cross-entropy.
        reduction: ``none``, ``mean`` or ``sum``.
        alpha_mode: ``balanced``: alpha weighs positives and 1 - alpha negatives (the paper, torchvision):
            ``a_t = alpha t + (1 - alpha) (1 - t)``. ``positive``: alpha weighs positives, and negatives weigh
            1. ``per_class``: a tensor weighs a class's positives and negatives alike.
        pos_weight: factor of the positive part of the cross-entropy, as in
            ``torch.nn.BCEWithLogitsLoss``: a number or a tensor that broadcasts to ``inputs``, such as (C,)
            for classes in the last dimension or (C, 1, 1) for (N, C, H, W).
        mask: bool, broadcast to ``inputs``, True where the loss counts. Where it is False loss and gradient
            are 0, whatever stands there.
        ignore_index: target that is left out likewise; None: there is none.
        normalizer: ``none``; ``numel``, the number of losses; ``valid``, of those not left out;
            ``positives``, the sum of the targets not left out, as in RetinaNet; counts are at least 1. Or a
            positive number or tensor of one element, such as a count over all ranks.

    Returns:
        Elementwise losses in the dtype of ``inputs``, or in that of wider floating targets; or a scalar
        (float32 for half precision).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a number is out of range, an unknown name, or
            there is nothing to take the mean of.
    """
    return _focal.sigmoid_focal(
        inputs,
        targets,
        alpha=alpha,
        gamma=gamma,
        reduction=reduction,
        alpha_mode=alpha_mode,
        pos_weight=pos_weight,
        mask=mask,
        ignore_index=ignore_index,
        normalizer=normalizer,
    )


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    reduction: str = "mean",
    alpha_mode: str = "per_class",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: str | Tensor | float | None = None,
) -> Tensor:
    """Focal loss of exclusive classes, softmax form (Lin et al. 2017, sec. 3; 1708.02002).

    A position costs ``alpha_y (1 - p_y)^gamma (-log p_y)`` for its class y and ``p = softmax(logits)``, and
    with targets t that are spread over the classes ``sum_c t_c alpha_c (1 - p_c)^gamma (-log p_c)``. Label
    smoothing e takes ``(1 - e) t + e / C`` for t, whatever t is (Szegedy et al. 2016, sec. 7). Log p and
    log(1 - p) are computed as such, so nothing saturates, and half precision is computed in float32.

    **What a reduction divides by**: as in :func:`sigmoid_focal_loss`. A mean divides by the number of targets
    that are not ignored, not by their weights.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...), or probabilities in the shape of ``logits``.
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        alpha: (C,) class weights, or a number with another ``alpha_mode``.
        reduction: ``none``, ``mean`` or ``sum``.
        alpha_mode: ``per_class``: alpha holds a weight of each class. ``balanced``: class 0 is the background
            and weighs 1 - alpha, all others alpha. ``positive``: class 0 weighs 1, all others alpha.
        label_smoothing: share of each target that is spread evenly over the classes, from 0 to 1.
        ignore_index: class of targets that are left out: loss and gradient are 0, whatever their logits.
        normalizer: ``none``; ``numel``, the number of targets; ``valid``, of those not ignored;
            ``positives``, of those neither ignored nor of class 0 (of probabilities, the sum of those of the
            other classes); counts are at least 1. Or a positive number or tensor of one element.

    Returns:
        Scalar, or losses (N, ...): float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes or devices do not fit, a class index is out of range, a number is,
            an unknown name, or there is nothing to take the mean of.
    """
    return _focal.softmax_focal(
        logits,
        target,
        gamma=gamma,
        alpha=alpha,
        reduction=reduction,
        alpha_mode=alpha_mode,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        normalizer=normalizer,
    )
