"""Softmax focal loss: checks, choice of backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import Objection, choose
from thawkit.ops.focal import cpu, cuda, options, reference, triton
from thawkit.ops.focal import normalizer as normalizers
from thawkit.ops.focal.softmax_operators import SoftmaxFocal, SoftmaxFocalTotal
from thawkit.ops.pairwise.common import full_precision, lifted

_KERNELS: dict[str, Objection] = {
    "cpu": cpu.objection,
    "cuda": cuda.objection,
    "triton": triton.objection,
}
BACKENDS = {"softmax_focal": tuple(_KERNELS)}

ALPHA_MODES = ("per_class", "balanced", "positive")
IGNORED = -100  # torch's default


def softmax_focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    alpha_mode: str = "per_class",
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORED,
    normalizer: normalizers.Normalizer = None,
    reduction: str = "mean",
    scale: float = 1.0,
    offset: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Softmax focal loss: see the public function for what is not here, and the reference for its equation.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...) or probabilities in the shape of ``logits``.
        gamma: focusing exponent, at least 0.
        alpha: class weights, by ``alpha_mode``.
        alpha_mode: ``per_class``, ``balanced`` or ``positive``.
        label_smoothing: share of each target that is spread evenly over the classes.
        ignore_index: target class without a loss.
        normalizer: what the loss is divided by.
        reduction: ``none``, ``mean`` or ``sum``.
        scale: factor of the logits.
        offset: (C,), added to the logits times ``scale``.
        margin: (C,), taken off the logit of the target's class after that; with class indices only.

    Returns:
        Scalar, or losses (N, ...): float64 for float64 logits, else float32.

    Raises:
        ThawkitError: types, shapes, dtypes, devices or targets do not fit, a number is out of range, nothing
            to average.
    """
    check(logits, target, gamma, label_smoothing, ignore_index)
    classes = logits.shape[1]
    weights = class_weights(logits, alpha, alpha_mode)
    probable = target.is_floating_point()
    count = logits.shape[:1].numel() * logits.shape[2:].numel()
    normalizers.check(normalizer, reduction, "logits", count)
    by = normalizers.divisor(normalizer, reduction, count, *_counts(target, ignore_index))
    vectors = [None if v is None else v.to(logits.device) for v in (weights, offset, margin)]
    kernels = _KERNELS
    if (probable and target.requires_grad) or any(v is not None and v.requires_grad for v in vectors):
        kernels = {}
    backend = choose("softmax_focal", kernels, logits)
    if backend == "reference":
        check_indices(target, classes, ignore_index)
        of, off, less = vectors
        with full_precision(logits):
            loss = reference.softmax_focal(
                lifted(logits), target, of, gamma, label_smoothing, ignore_index, scale, off, less
            )
        return normalizers.divided(loss if reduction == "none" else loss.sum(), by)
    if not torch.is_grad_enabled():
        logits = logits.detach()
    shape = logits.shape[:1] + logits.shape[2:]
    logits, target = _in_memory_order(logits, target)
    if target.dtype == torch.float64:
        target = target.float()
    narrow = [None if v is None else v.to(torch.float32) for v in vectors]
    numbers = float(scale), float(gamma), float(label_smoothing), ignore_index, backend
    if reduction == "none":
        rows = SoftmaxFocal.apply(logits, target, *narrow, numbers)
        return normalizers.divided(rows.reshape(shape), by)
    factor, division, rest = normalizers.split(by, logits.device)
    total = SoftmaxFocalTotal.apply(logits, target, factor, division, *narrow, numbers)
    return normalizers.divided(total, rest)


def class_weights(logits: Tensor, alpha: Tensor | float | None, mode: str) -> Tensor | None:
    """Return the (C,) weights that ``alpha`` means.

    Raises:
        ThawkitError: it does not go with ``alpha_mode``, the shape or device does not fit.
    """
    checks.one_of("alpha_mode", mode, ALPHA_MODES)
    if alpha is None:
        return None
    classes = logits.shape[1]
    if mode == "per_class":
        if not isinstance(alpha, Tensor):
            raise ThawkitError(
                f"alpha must be a tensor of {classes} class weights, got {type(alpha).__name__}"
                + (f" (alpha_mode {mode!r})" if isinstance(alpha, int | float) else "")
            )
        checks.floating("alpha", alpha)
        if alpha.shape != (classes,):
            raise ThawkitError(f"alpha must have shape ({classes},), got {tuple(alpha.shape)}")
        checks.same_device("alpha", alpha, "logits", logits)
        return alpha
    if isinstance(alpha, Tensor):
        raise ThawkitError(f"alpha must be a number where alpha_mode={mode!r}, got a tensor")
    checks.finite("alpha", alpha)
    if mode == "balanced" and not 0 <= alpha <= 1:
        raise ThawkitError(f"alpha must be in [0, 1] where alpha_mode='balanced', got {alpha}")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weights = torch.full((classes,), float(alpha), dtype=dtype, device=logits.device)
    weights[:1] = 1.0 - alpha if mode == "balanced" else 1.0
    return weights


def _in_memory_order(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of classes where those lie next to each other, as in channels last: nothing is copied."""
    if logits.dim() == 2 or logits.is_contiguous():
        return logits, target
    rows = logits.movedim(1, -1)
    if not rows.is_contiguous():
        return logits, target
    classes = logits.shape[1]
    probable = target.is_floating_point()
    target = target.movedim(1, -1).reshape(-1, classes) if probable else target.reshape(-1)
    return rows.reshape(-1, classes), target


def _counts(target: Tensor, ignored: int) -> Any:
    """Return what counts the valid targets (None: all are) and what counts those not of class 0."""
    if target.is_floating_point():
        return None, lambda: _not_of_class_0(target.detach())
    counting = lambda: (target != ignored).sum(dtype=torch.float32)
    return counting, lambda: ((target != ignored) & (target != 0)).sum(dtype=torch.float32)


def _not_of_class_0(probabilities: Tensor) -> Tensor:
    others = probabilities[:, 1:]
    if lifted(others) is others:
        return others.sum()
    # what half precision leaves of class 0 has more digits than the others near 1
    return (1 - lifted(probabilities[:, 0])).where(others.any(1), 0).sum()


def check(logits: Tensor, target: Tensor, gamma: float, smoothing: float, ignore_index: int) -> None:
    """Require logits, a target and numbers that go together."""
    checks.floating("logits", logits)
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ThawkitError(f"logits must have shape (N, C, ...), C not 0, got {tuple(logits.shape)}")
    if not isinstance(target, Tensor):
        raise ThawkitError(
            f"target must be a tensor of int64 class indices or of probabilities, got {type(target).__name__}"
        )
    positions = logits.shape[:1] + logits.shape[2:]
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ThawkitError(
                f"target must be a tensor of int64 class indices or of probabilities in the shape of logits, "
                f"{tuple(logits.shape)}, got {target.dtype} of shape {tuple(target.shape)}"
            )
    elif target.dtype != torch.int64:
        raise ThawkitError(
            f"target must be a tensor of int64 class indices or of probabilities, got {target.dtype}"
        )
    elif target.shape != positions:
        raise ThawkitError(
            f"target must have the shape of logits {tuple(logits.shape)} without axis 1, "
            f"got {tuple(target.shape)}"
        )
    checks.same_device("target", target, "logits", logits)
    checks.integer("ignore_index", ignore_index)
    options.check(gamma, smoothing)


def check_indices(target: Tensor, classes: int, ignored: int) -> None:
    """Require indices of classes. The kernel looks itself; others look where that takes no waiting."""
    if target.is_floating_point() or not checks.readable(target):
        return
    counted = target[target != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ThawkitError(
            f"target must hold class indices 0 to {classes - 1} or ignore_index={ignored}, "
            f"got {int(counted.min())} to {int(counted.max())}"
        )
