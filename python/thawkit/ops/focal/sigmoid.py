"""Sigmoid focal loss: checks, choice of backend, definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import Objection, choose
from thawkit.ops.focal import cpu, cuda, options, reference, triton
from thawkit.ops.focal import normalizer as normalizers
from thawkit.ops.focal.sigmoid_operators import SigmoidFocal, SigmoidFocalTotal, counting, one_hot
from thawkit.ops.focal.weights import Weights, on, pack, weights
from thawkit.ops.pairwise.common import full_precision, lifted

_KERNELS: dict[str, Objection] = {
    "cpu": cpu.objection,
    "cuda": cuda.objection,
    "triton": triton.objection,
}
BACKENDS = {"sigmoid_focal": tuple(_KERNELS)}


def sigmoid_focal(
    inputs: Tensor,
    targets: Tensor,
    *,
    alpha: Tensor | float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    alpha_mode: str = "balanced",
    pos_weight: Tensor | float | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = None,
    normalizer: normalizers.Normalizer = None,
    label_smoothing: float = 0.0,
    separate: bool = False,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5; 1708.02002): see the public function for what is not here.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1]; if floating, computed with in the wider dtype of the two,
            as 1 - t has not the digits of a rounded t. Or int64 of the shape without its last dimension: the
            class whose target is 1, a number outside of 0 to C - 1 for none.
        alpha: weights of positives and negatives, by ``alpha_mode``.
        gamma: focusing exponent, at least 0.
        reduction: ``none``, ``mean`` or ``sum``.
        alpha_mode: ``balanced``, ``positive`` or ``per_class``.
        pos_weight: factor of the cross-entropy's positive part, broadcast to ``inputs``.
        weight: factor of the losses, broadcast to ``inputs``.
        mask: bool, broadcast to ``inputs``, True where the loss counts.
        ignore_index: target without a loss.
        normalizer: what the loss is divided by.
        label_smoothing: the cross-entropy, and nothing else, takes ``t (1 - s) + s / 2`` for a target t.
        separate: what soft targets mean: see the reference.

    Returns:
        Elementwise losses in the dtype of ``inputs``, or in that of wider floating targets; or a scalar:
        float32 for half precision.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a number is out of range, nothing to average.
    """
    indices = _check(inputs, targets, gamma, mask, ignore_index, label_smoothing)
    normalizers.check(normalizer, reduction, "inputs", inputs.numel())
    given = weights(inputs, alpha, alpha_mode, pos_weight, weight)
    if mask is not None:
        mask = mask.expand(inputs.shape)
    if not indices and targets.is_floating_point():
        inputs = inputs.to(torch.promote_types(inputs.dtype, targets.dtype))
    if ignore_index is not None and not _exact(ignore_index, torch.float32 if indices else inputs.dtype):
        mask, ignore_index = counting(inputs, targets, mask, ignore_index), None
    if not indices:
        targets = targets.to(inputs.dtype)
    by = normalizers.divisor(
        normalizer, reduction, inputs.numel(), *_counts(inputs, targets, mask, ignore_index)
    )
    kernels = {} if targets.requires_grad or given.requires_grad else _KERNELS
    smoothing = float(label_smoothing)
    backend = choose("sigmoid_focal", kernels, inputs)
    if backend == "reference":
        with full_precision(inputs):
            loss = _by_definition(inputs, targets, given, gamma, mask, ignore_index, smoothing, separate)
        if reduction == "none":
            return normalizers.divided(loss, by).to(inputs.dtype)
        return normalizers.divided(loss.sum(), by)
    packed = pack(inputs, given)
    ignored = None if ignore_index is None else float(ignore_index)
    weighed = packed.positive, packed.negative, float(gamma), packed.period, packed.row
    numbers = (*weighed, ignored, smoothing, separate, backend)
    vectors = packed.classes, mask, packed.row_weight
    if not torch.is_grad_enabled():
        inputs = inputs.detach()
    if reduction == "none":
        return normalizers.divided(SigmoidFocal.apply(inputs, targets, *vectors, numbers), by)
    factor, division, rest = normalizers.split(by, inputs.device)
    total = SigmoidFocalTotal.apply(inputs, targets, factor, division, *vectors, numbers)
    return normalizers.divided(total, rest)


def _check(
    inputs: Tensor,
    targets: Tensor,
    gamma: float,
    mask: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
) -> bool:
    """Return whether the targets are class indices."""
    checks.floating("inputs", inputs)
    if not isinstance(targets, Tensor):
        raise ThawkitError(f"targets must be a tensor, got {type(targets).__name__}")
    indices = targets.dtype == torch.int64 and inputs.dim() > 0 and targets.shape == inputs.shape[:-1]
    if not indices and inputs.shape != targets.shape:
        raise ThawkitError(
            f"targets must have the shape of inputs, {tuple(inputs.shape)}, got {tuple(targets.shape)}"
        )
    checks.same_device("targets", targets, "inputs", inputs)
    options.check(gamma, label_smoothing)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    if mask is not None:
        _check_mask(mask, inputs)
    return indices


def _check_mask(mask: Tensor, inputs: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ThawkitError(f"mask must be a bool tensor, got {came}")
    checks.same_device("mask", mask, "inputs", inputs)
    fits = mask.dim() <= inputs.dim() and all(
        a in (1, b) for a, b in zip(reversed(mask.shape), reversed(inputs.shape), strict=False)
    )
    if not fits:
        raise ThawkitError(
            f"mask must broadcast to the shape of inputs, {tuple(inputs.shape)}, got {tuple(mask.shape)}"
        )


def _exact(number: int, dtype: torch.dtype) -> bool:
    """Return whether the dtype tells an integer from its neighbours."""
    return abs(number) < 2 / torch.finfo(dtype).eps


def _counts(inputs: Tensor, targets: Tensor, mask: Tensor | None, ignored: int | None) -> Any:
    """Return what counts the valid losses (None: all are) and what adds up the positive targets of them."""
    indices = targets.dim() < inputs.dim()

    def valid() -> Tensor:
        kept = counting(inputs, targets, mask, ignored)
        assert kept is not None
        return kept.sum(dtype=torch.float32)

    def positives() -> Tensor:
        if indices:
            ones = (targets >= 0) & (targets < inputs.shape[-1])
            if ignored is not None:
                ones = ones & (targets != ignored)
            if mask is not None:
                at = targets.where(ones, 0).unsqueeze(-1)
                ones = ones & mask.gather(-1, at).squeeze(-1)
            return ones.sum(dtype=torch.float32)
        kept = counting(inputs, targets, mask, ignored)
        values = targets.detach() if kept is None else targets.detach().where(kept, 0)
        return values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)

    return (None if mask is None and ignored is None else valid), positives


def _by_definition(
    inputs: Tensor,
    targets: Tensor,
    given: Weights,
    gamma: float,
    mask: Tensor | None,
    ignored: int | None,
    smoothing: float,
    separate: bool,
) -> Tensor:
    kept = counting(inputs, targets, mask, ignored)
    x = lifted(inputs)
    t = one_hot(x, targets) if targets.dim() < inputs.dim() else targets.to(x.dtype)
    if kept is not None:
        x, t = x.where(kept, 0), t.where(kept, 0)
    positive, negative, pos_weight = (on(w, x) for w in given[:3])
    loss = reference.sigmoid_focal(x, t, positive, negative, gamma, pos_weight, smoothing, separate)
    if given.weight is not None:
        loss = loss * on(given.weight, x)
    return loss if kept is None else loss.where(kept, 0)
