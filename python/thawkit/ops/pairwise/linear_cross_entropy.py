"""A linear classifier's cross-entropy: checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision

IGNORED = -100  # torch's default


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = IGNORED,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of a linear layer's outputs (:func:`torch.nn.functional.linear_cross_entropy`).

    Args:
        input: (..., D).
        linear_weight: (C, D), or (C, d_1, ..., d_K, D); may be float32 beside half-precision input.
        target: int64 classes (..., d_1, ..., d_K), or probabilities (..., C, d_1, ..., d_K), which get a
            gradient.
        linear_bias: (C, d_1, ..., d_K).
        weight: (C,) weights of the classes.
        reduction: ``none`` gives losses (..., d_1, ..., d_K). ``mean`` divides by the sum of the weights of
            the target classes, and probabilities by the number of targets.
        ignore_index: target class without a loss.
        label_smoothing: share of each target that is spread evenly over the classes.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or targets do not fit, a number out of range, or there is
            nothing to take the mean of.
    """
    _check_layer(input, linear_weight, linear_bias)
    ignored = IGNORED if ignore_index is None else ignore_index
    _check_target(target, input, linear_weight, ignored)
    if weight is not None:
        _check_part("weight", weight, linear_weight.shape[:1], input)
    checks.finite("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ThawkitError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
    leading, positions = input.shape[:-1], linear_weight.shape[1:-1]
    checks.reduced("input", leading.numel() * positions.numel(), reduction)
    choose("linear_cross_entropy", {}, input, linear_weight)

    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    target = target.to(dtype if target.is_floating_point() else torch.int64)
    with full_precision(input):
        loss = reference.linear_cross_entropy(
            input.reshape(leading.numel(), input.shape[-1]).to(dtype),
            linear_weight.to(dtype),
            target.reshape(leading.numel(), *target.shape[len(leading) :]),
            None if linear_bias is None else linear_bias.to(dtype),
            None if weight is None else weight.detach().to(dtype),
            reduction,
            ignored,
            label_smoothing,
        )
    return loss.reshape(leading + positions) if reduction == "none" else loss


def _check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    checks.floating("input", input)
    checks.floating("linear_weight", linear_weight)
    if input.dim() < 1:
        raise ThawkitError("input must have shape (..., features), got ()")
    if linear_weight.dim() < 2 or linear_weight.shape[0] == 0 or linear_weight.shape[-1] != input.shape[-1]:
        raise ThawkitError(
            f"linear_weight must have shape (classes, ..., {input.shape[-1]}), the features of input last, "
            f"got {tuple(linear_weight.shape)}"
        )
    checks.same_device("linear_weight", linear_weight, "input", input)
    _check_precision("linear_weight", linear_weight, input)
    if linear_bias is not None:
        _check_part("linear_bias", linear_bias, linear_weight.shape[:-1], input)
        _check_precision("linear_bias", linear_bias, input)


def _check_part(name: str, x: Tensor, shape: tuple[int, ...], input: Tensor) -> None:
    checks.floating(name, x)
    _check_shape(name, x, shape)
    checks.same_device(name, x, "input", input)


def _check_precision(name: str, x: Tensor, input: Tensor) -> None:
    if (x.dtype == torch.float64) != (input.dtype == torch.float64):
        raise ThawkitError(
            f"{name} must be float64 if input is, and only then, got {x.dtype} with {input.dtype}"
        )


def _check_target(target: Tensor, input: Tensor, linear_weight: Tensor, ignored: int) -> None:
    if not isinstance(target, Tensor):
        raise ThawkitError(f"target must be a tensor, got {type(target).__name__}")
    checks.same_device("target", target, "input", input)
    leading, (classes, *positions) = input.shape[:-1], linear_weight.shape[:-1]
    if target.is_floating_point():
        _check_shape("target", target, (*leading, classes, *positions), "of probabilities ")
        if ignored != IGNORED:
            raise ThawkitError(f"ignore_index must be left out with probabilities, got {ignored}")
        return
    if target.dtype not in (torch.int64, torch.uint8):
        raise ThawkitError(f"target must hold int64 classes or floating probabilities, got {target.dtype}")
    _check_shape("target", target, (*leading, *positions), "of classes ")
    if not checks.readable(target):
        return
    counted = target[target.long() != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ThawkitError(
            f"target must hold classes 0 to {classes - 1} or ignore_index={ignored}, "
            f"got {int(counted.min())} to {int(counted.max())}"
        )


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...], what: str = "") -> None:
    if x.shape != shape:
        raise ThawkitError(f"{name} {what}must have shape {tuple(shape)}, got {tuple(x.shape)}")
