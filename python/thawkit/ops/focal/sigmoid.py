"""Sigmoid focal loss: schema, checks, gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define, empty, scaled
from thawkit.ops.dispatch import Objection, choose
from thawkit.ops.focal import cpu, cuda, reference
from thawkit.ops.focal import normalizer as normalizers
from thawkit.ops.focal.weights import Packed, Weights, on, pack, unpacked, weights
from thawkit.ops.pairwise.common import full_precision, lifted

_KERNELS: dict[str, Objection] = {"cpu": cpu.objection, "cuda": cuda.objection}
_ONLY_PLAIN: dict[str, Objection] = {"cpu": cpu.objection, "cuda": cuda.objection_to_options}
BACKENDS = {"sigmoid_focal": tuple(_KERNELS)}


class Options(NamedTuple):
    """Everything of a call but logits and targets, as the operators take it."""

    positive: float
    negative: float
    gamma: float
    classes: Tensor | None
    period: int
    mask: Tensor | None
    row_weight: Tensor | None
    row: int
    ignored: float | None
    smoothing: float
    separate: bool


_SCHEMA = (
    "Tensor x, Tensor t, float positive, float negative, float gamma, Tensor? classes, int period, "
    "Tensor? mask, Tensor? row_weight, int row, float? ignored, float smoothing, bool separate"
)


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
        targets: the same shape, numbers in [0, 1]; cast to the logits' dtype. Or int64 of the shape without
            its last dimension: the class whose target is 1, a number outside of 0 to C - 1 for none.
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
        Elementwise losses in the dtype of ``inputs``, or a scalar: float32 for half-precision inputs.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a number is out of range, nothing to average.
    """
    indices = _check(inputs, targets, gamma, mask, ignore_index, label_smoothing)
    normalizers.check(normalizer, reduction, "inputs", inputs.numel())
    given = weights(inputs, alpha, alpha_mode, pos_weight, weight)
    if not indices:
        targets = targets.to(inputs.dtype)
    if mask is not None:
        mask = mask.expand(inputs.shape)
    by = normalizers.divisor(
        normalizer, reduction, inputs.numel(), *_counts(inputs, targets, mask, ignore_index)
    )
    special = not given.plain or indices or mask is not None or ignore_index is not None
    special = special or label_smoothing != 0 or separate
    kernels = _ONLY_PLAIN if special else _KERNELS
    if targets.requires_grad or given.requires_grad:
        kernels = {}
    smoothing = float(label_smoothing)
    with full_precision(inputs):
        if choose("sigmoid_focal", kernels, inputs) == "reference":
            loss = _by_definition(inputs, targets, given, gamma, mask, ignore_index, smoothing, separate)
            if reduction == "none":
                return normalizers.divided(loss, by).to(inputs.dtype)
            return normalizers.divided(loss.sum(), by)
        packed = pack(inputs, given)
        options = Options(
            packed.positive, packed.negative, float(gamma), packed.classes, packed.period, mask,
            packed.row_weight, packed.row, None if ignore_index is None else float(ignore_index), smoothing,
            separate,
        )  # fmt: skip
        if not torch.is_grad_enabled():
            inputs = inputs.detach()
        if reduction == "none":
            return normalizers.divided(_SigmoidFocal.apply(inputs, targets, *options), by)
        factor, division, rest = normalizers.split(by, inputs.device)
        return normalizers.divided(
            _SigmoidFocalTotal.apply(inputs, targets, factor, division, *options), rest
        )


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
    checks.finite("gamma", gamma)
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    if mask is not None:
        _check_mask(mask, inputs)
    checks.finite("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ThawkitError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
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


def _counting(inputs: Tensor, targets: Tensor, mask: Tensor | None, ignored: int | None) -> Tensor | None:
    """Return where losses count, in a shape that broadcasts to ``inputs``; None: everywhere."""
    if ignored is None:
        return mask
    counting = targets != ignored
    if targets.dim() < inputs.dim():
        counting = counting.unsqueeze(-1).expand(inputs.shape)
    return counting if mask is None else counting & mask


def _counts(inputs: Tensor, targets: Tensor, mask: Tensor | None, ignored: int | None) -> Any:
    """Return what counts the valid losses (None: all are) and what adds up the positive targets of them."""
    indices = targets.dim() < inputs.dim()

    def valid() -> Tensor:
        counting = _counting(inputs, targets, mask, ignored)
        assert counting is not None
        return counting.sum(dtype=torch.float32)

    def positives() -> Tensor:
        if indices:
            ones = (targets >= 0) & (targets < inputs.shape[-1])
            if ignored is not None:
                ones = ones & (targets != ignored)
            if mask is not None:
                at = targets.where(ones, 0).unsqueeze(-1)
                ones = ones & mask.gather(-1, at).squeeze(-1)
            return ones.sum(dtype=torch.float32)
        counting = _counting(inputs, targets, mask, ignored)
        values = targets.detach() if counting is None else targets.detach().where(counting, 0)
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
    counting = _counting(inputs, targets, mask, ignored)
    x = lifted(inputs)
    t = _one_hot(x, targets) if targets.dim() < inputs.dim() else targets.to(x.dtype)
    if counting is not None:
        x, t = x.where(counting, 0), t.where(counting, 0)
    positive, negative, pos_weight = (on(w, x) for w in given[:3])
    loss = reference.sigmoid_focal(x, t, positive, negative, gamma, pos_weight, smoothing, separate)
    if given.weight is not None:
        loss = loss * on(given.weight, x)
    return loss if counting is None else loss.where(counting, 0)


def _one_hot(inputs: Tensor, targets: Tensor) -> Tensor:
    known = (targets >= 0) & (targets < inputs.shape[-1])
    at = targets.where(known, 0).unsqueeze(-1)
    return torch.zeros_like(inputs).scatter(-1, at, known.unsqueeze(-1).to(inputs.dtype))


def _of_options(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The elementwise losses by the reference, of what the operators take."""
    ignored = None if options.ignored is None else int(options.ignored)
    counting = _counting(x, t, options.mask, ignored)
    wide = lifted(x)
    t = _one_hot(wide, t) if t.dim() < x.dim() else t.to(wide.dtype)
    if counting is not None:
        wide, t = wide.where(counting, 0), t.where(counting, 0)
    packed = Packed(
        options.positive, options.negative, options.classes, options.period, options.row_weight, options.row
    )
    positive, negative, pos_weight = unpacked(packed, wide)
    loss = reference.sigmoid_focal(
        wide.reshape(-1), t.reshape(-1), positive, negative, options.gamma, pos_weight, options.smoothing,
        options.separate,
    ).reshape(x.shape)  # fmt: skip
    return loss if counting is None else loss.where(counting, 0)


def _backend(x: Tensor) -> ModuleType:
    return cpu if x.device.type == "cpu" else cuda


def _dense(options: tuple[Any, ...]) -> Options:
    return Options._make(o.contiguous() if isinstance(o, Tensor) else o for o in options)


_rows_op = define(
    f"sigmoid_focal({_SCHEMA}) -> Tensor",
    lambda x, t, *options: _backend(x).rows(x.contiguous(), t.contiguous(), _dense(options)),
    lambda x, t, *options: x.new_empty(x.shape),
)
_total_op = define(
    f"sigmoid_focal_total({_SCHEMA}, float factor, Tensor? divisor, bool need_gradient) -> (Tensor, Tensor)",
    lambda x, t, *rest: _backend(x).total(x.contiguous(), t.contiguous(), _dense(rest[:-3]), *rest[-3:]),
    lambda x, t, *rest: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if rest[-1] else empty(x),
    ),
)
_backward_op = define(
    f"sigmoid_focal_backward(Tensor g, {_SCHEMA}) -> Tensor",
    lambda g, x, t, *options: _backend(x).backward(
        g.contiguous(), x.contiguous(), t.contiguous(), _dense(options)
    ),
    lambda g, x, t, *options: x.new_empty(x.shape),
)


def _differentiable(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The gradient by the reference, itself differentiable: what double backward needs."""
    loss = _of_options(x, t, options)
    return torch.autograd.grad(loss, x, g.expand_as(loss).to(loss.dtype), create_graph=True)[0]


def _saved(ctx: Any, x: Tensor, t: Tensor, options: Options, *more: Tensor | None) -> None:
    ctx.save_for_backward(x, t, options.classes, options.mask, options.row_weight, *more)
    ctx.options = options._replace(classes=None, mask=None, row_weight=None)


def _restored(ctx: Any) -> tuple[Tensor, Tensor, Options, list[Tensor | None]]:
    x, t, classes, mask, row_weight, *more = ctx.saved_tensors
    return x, t, ctx.options._replace(classes=classes, mask=mask, row_weight=row_weight), more


_NOTHING = (None,) * len(Options._fields)


class _SigmoidFocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, *options: Any) -> Tensor:
        _saved(ctx, x, t, Options._make(options))
        return _rows_op(x, t, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, t, options, _ = _restored(ctx)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _differentiable(g, x, t, options), None, *_NOTHING
        return _backward_op(g, x, t, *options), None, *_NOTHING


class _SigmoidFocalTotal(torch.autograd.Function):
    """Sum or mean: the gradient leaves the same pass as the loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, factor: float, division: Tensor | None, *options: Any
    ) -> Tensor:
        value, gradient = _total_op(x, t, *options, factor, division, ctx.needs_input_grad[0])
        ctx.factor = factor
        _saved(ctx, x, t, Options._make(options), gradient, division)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, t, options, (gradient, division) = _restored(ctx)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            g = g * ctx.factor if division is None else g * ctx.factor / division
            return _differentiable(g, x, t, options), None, None, None, *_NOTHING
        return *scaled((gradient,), g, (True,)), None, None, None, *_NOTHING
