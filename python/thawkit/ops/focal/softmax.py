"""Softmax focal loss: schema, checks, gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define, empty, scaled
from thawkit.ops.dispatch import Objection, choose
from thawkit.ops.focal import cpu, reference
from thawkit.ops.focal import normalizer as normalizers
from thawkit.ops.pairwise.common import full_precision, lifted

_KERNELS: dict[str, Objection] = {"cpu": cpu.objection}
BACKENDS = {"softmax_focal": tuple(_KERNELS)}

ALPHA_MODES = ("per_class", "balanced", "positive")
IGNORED = -100  # torch's default


class Options(NamedTuple):
    """Everything of a call but logits and target, as the operators take it."""

    alpha: Tensor | None
    offset: Tensor | None
    margin: Tensor | None
    scale: float
    gamma: float
    smoothing: float
    ignored: int


_SCHEMA = (
    "Tensor x, Tensor t, Tensor? alpha, Tensor? offset, Tensor? margin, float scale, float gamma, "
    "float smoothing, int ignored"
)


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
    _check(logits, target, gamma, label_smoothing, ignore_index)
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
    shape = logits.shape[:1] + logits.shape[2:]
    with full_precision(logits):
        if choose("softmax_focal", kernels, logits) == "reference":
            _check_indices(target, classes, ignore_index)
            of, off, less = vectors
            loss = reference.softmax_focal(
                lifted(logits), target, of, gamma, label_smoothing, ignore_index, scale, off, less
            )
            return normalizers.divided(loss if reduction == "none" else loss.sum(), by)
        if not torch.is_grad_enabled():
            logits = logits.detach()
        logits, target = _in_memory_order(logits, target)
        if probable and target.dtype == torch.float64:
            target = target.float()
        of, off, less = (None if v is None else v.to(torch.float32) for v in vectors)
        numbers = float(scale), float(gamma), float(label_smoothing)
        options = Options(of, off, less, *numbers, ignore_index)
        if reduction == "none":
            rows = _SoftmaxFocal.apply(logits, target, *options)
            return normalizers.divided(rows.reshape(shape), by)
        factor, division, rest = normalizers.split(by, logits.device)
        return normalizers.divided(_SoftmaxFocalTotal.apply(logits, target, factor, division, *options), rest)


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
        others = lambda: (1 - target.detach().select(1, 0)).sum(
            dtype=torch.float64 if target.dtype == torch.float64 else torch.float32
        )
        return None, others
    counting = lambda: (target != ignored).sum(dtype=torch.float32)
    return counting, lambda: ((target != ignored) & (target != 0)).sum(dtype=torch.float32)


def _check(logits: Tensor, target: Tensor, gamma: float, smoothing: float, ignore_index: int) -> None:
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
    checks.finite("gamma", gamma)
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    checks.finite("label_smoothing", smoothing)
    if not 0 <= smoothing <= 1:
        raise ThawkitError(f"label_smoothing must be from 0 to 1, got {smoothing}")
    checks.integer("ignore_index", ignore_index)


def _check_indices(target: Tensor, classes: int, ignored: int) -> None:
    """The kernel looks itself; the definition is looked after where that takes no waiting."""
    if target.is_floating_point() or not checks.readable(target):
        return
    counted = target[target != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ThawkitError(
            f"target must hold class indices 0 to {classes - 1} or ignore_index={ignored}, "
            f"got {int(counted.min())} to {int(counted.max())}"
        )


def _losses(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32)


def _dense(options: tuple[Any, ...]) -> Options:
    return Options._make(o.contiguous() if isinstance(o, Tensor) else o for o in options)


_rows_op = define(
    f"softmax_focal({_SCHEMA}) -> Tensor",
    lambda x, t, *options: cpu.softmax_rows(x.contiguous(), t.contiguous(), _dense(options)),
    lambda x, t, *options: _losses(x),
)
_total_op = define(
    f"softmax_focal_total({_SCHEMA}, float factor, Tensor? divisor, bool need_gradient) -> (Tensor, Tensor)",
    lambda x, t, *rest: cpu.softmax_total(x.contiguous(), t.contiguous(), _dense(rest[:-3]), *rest[-3:]),
    lambda x, t, *rest: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if rest[-1] else empty(x),
    ),
)
_backward_op = define(
    f"softmax_focal_backward(Tensor g, {_SCHEMA}) -> Tensor",
    lambda g, x, t, *options: cpu.softmax_backward(
        g.contiguous(), x.contiguous(), t.contiguous(), _dense(options)
    ),
    lambda g, x, t, *options: x.new_empty(x.shape),
)


def _differentiable(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The gradient by the reference, itself differentiable: what double backward needs."""
    alpha, offset, margin, scale, gamma, smoothing, ignored = options
    loss = reference.softmax_focal(lifted(x), t, alpha, gamma, smoothing, ignored, scale, offset, margin)
    return torch.autograd.grad(loss, x, g.expand_as(loss).to(loss.dtype), create_graph=True)[0]


_NOTHING = (None,) * len(Options._fields)


def _saved(ctx: Any, x: Tensor, t: Tensor, options: Options, *more: Tensor | None) -> None:
    ctx.save_for_backward(x, t, *options[:3], *more)
    ctx.options = options._replace(alpha=None, offset=None, margin=None)


def _restored(ctx: Any) -> tuple[Tensor, Tensor, Options, list[Tensor | None]]:
    x, t, alpha, offset, margin, *more = ctx.saved_tensors
    return x, t, ctx.options._replace(alpha=alpha, offset=offset, margin=margin), more


class _SoftmaxFocal(torch.autograd.Function):
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


class _SoftmaxFocalTotal(torch.autograd.Function):
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
