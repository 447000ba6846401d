"""Losses for classes of very different sizes, as views of the focal operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.focal.cross_entropy import cross_entropy
from thawkit.ops.focal.sigmoid import sigmoid_focal
from thawkit.ops.focal.softmax import check, check_indices, softmax_focal
from thawkit.ops.pairwise.common import lifted

FORMS = ("softmax", "sigmoid", "focal")


def sizes(name: str, given: Tensor | Sequence[float]) -> Tensor:
    """Return positive numbers, one a class, as a float64 vector.

    Raises:
        ThawkitError: they are no vector or not positive.
    """
    try:
        numbers = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ThawkitError(f"{name} must hold one number a class, got {type(given).__name__}") from None
    if numbers.dim() != 1 or numbers.numel() == 0:
        raise ThawkitError(f"{name} must have shape (classes,), got {tuple(numbers.shape)}")
    numbers = numbers.detach().double()
    if checks.readable(numbers) and not bool(((numbers > 0) & numbers.isfinite()).all()):
        raise ThawkitError(f"{name} must be positive and finite, got {numbers.tolist()}")
    return numbers


def narrowed(x: Tensor, given: Tensor | Sequence[float]) -> Tensor:
    """Return float32, or float64 where that was given."""
    return x if isinstance(given, Tensor) and given.dtype == torch.float64 else x.float()


def precise(samples_per_class: Tensor | Sequence[float], logits: Tensor) -> Tensor | Sequence[float]:
    """Return the sizes in float64 where the logits are, so that what is made of them is float64 too."""
    wide = isinstance(logits, Tensor) and logits.dtype == torch.float64
    return sizes("samples_per_class", samples_per_class) if wide else samples_per_class


def class_balanced_weights(samples_per_class: Tensor | Sequence[float], beta: float) -> Tensor:
    """See :func:`thawkit.losses.functional.class_balanced_weights`."""
    count = sizes("samples_per_class", samples_per_class)
    checks.finite("beta", beta)
    if not 0 <= beta < 1:
        raise ThawkitError(f"beta must be from 0 to below 1, got {beta}")
    weights = 1 / -torch.expm1(count * torch.log(count.new_full((), beta)))
    return narrowed(weights * (count.numel() / weights.sum()), samples_per_class)


def ldam_margins(samples_per_class: Tensor | Sequence[float], max_margin: float) -> Tensor:
    """See :func:`thawkit.losses.functional.ldam_margins`."""
    count = sizes("samples_per_class", samples_per_class)
    checks.finite("max_margin", max_margin)
    margins = count**-0.25
    return narrowed(margins * (max_margin / margins.max()), samples_per_class)


def class_weighted(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    loss: str,
    gamma: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The weight of a sample's class times its loss of one form; a mean is one of the samples."""
    checks.one_of("loss", loss, FORMS)
    _check(logits, target, gamma, ignore_index, "samples_per_class", weights)
    weights = weights.to(logits.device)
    if loss == "softmax":
        return softmax_focal(
            logits, target, gamma=0.0, alpha=weights, ignore_index=ignore_index, reduction=reduction
        )
    counted = target != ignore_index
    checks.reduced("logits", target.numel(), reduction)
    check_indices(target, logits.shape[1], ignore_index)
    each = weights[target.where(counted, 0)].unsqueeze(-1)
    mean = counted.sum(dtype=torch.float32).clamp_min(1) if reduction == "mean" else None
    if reduction == "none":
        logits = lifted(logits)  # the elements' losses come back in the logits' dtype, and are added up here
    rows = sigmoid_focal(
        logits.movedim(1, -1),
        target,
        alpha=None,
        gamma=gamma if loss == "focal" else 0.0,
        weight=each,
        ignore_index=ignore_index,
        normalizer=mean,
        reduction=reduction,
    )
    return rows.sum(-1) if reduction == "none" else rows


def ldam(
    logits: Tensor,
    target: Tensor,
    margins: Tensor,
    *,
    scale: float,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """See :func:`thawkit.losses.functional.ldam_loss`."""
    _check(logits, target, 0.0, ignore_index, "samples_per_class", margins)
    checks.positive_scalar("scale", scale)
    return cross_entropy(
        logits,
        target,
        weight,
        scale=float(scale),
        margin=margins.to(logits.device) * float(scale),
        ignore_index=ignore_index,
        reduction=reduction,
    )


def logit_adjusted(
    logits: Tensor,
    target: Tensor,
    class_prior: Tensor | Sequence[float],
    *,
    tau: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """See :func:`thawkit.losses.functional.logit_adjusted_loss`."""
    prior = sizes("class_prior", class_prior)
    _check(logits, target, 0.0, ignore_index, "class_prior", prior)
    checks.finite("tau", tau)
    offset = tau * (prior.log() - prior.sum().log())
    return cross_entropy(
        logits, target, offset=offset.to(logits.device), ignore_index=ignore_index, reduction=reduction
    )


def _check(
    logits: Tensor, target: Tensor, gamma: float, ignore_index: int, name: str, vector: Tensor
) -> None:
    check(logits, target, gamma, 0.0, ignore_index)
    if target.is_floating_point():
        raise ThawkitError(f"target must hold int64 class indices, got {target.dtype}")
    if vector.shape != logits.shape[1:2]:
        raise ThawkitError(
            f"{name} must hold one number for each of {logits.shape[1]} classes, got {vector.numel()}"
        )
