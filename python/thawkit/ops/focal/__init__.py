"""Focal losses: schema, checks, gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define, empty, scaled
from thawkit.ops.dispatch import choose
from thawkit.ops.focal import cpu, cuda, reference

__all__ = ["sigmoid_focal"]

_KERNELS = {"cpu": cpu.objection, "cuda": cuda.objection}
BACKENDS = {"sigmoid_focal": tuple(_KERNELS)}


def sigmoid_focal(
    inputs: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5; 1708.02002), with torchvision's values.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1]; cast to the logits' dtype. Targets that require a
            gradient go by the reference.
        alpha: weight of the positive class, 1 - alpha of the negative; negative: no weights.
        gamma: focusing exponent, at least 0.
        reduction: ``none`` (elementwise), ``mean`` or ``sum``.

    Returns:
        Elementwise losses in the dtype of ``inputs``, or a scalar: float32 for half-precision inputs.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, alpha above 1, gamma below 0, nothing to average.
    """
    _check(inputs, targets, alpha, gamma, reduction)
    targets = targets.to(inputs.dtype)
    kernels = {} if targets.requires_grad else _KERNELS
    if choose("sigmoid_focal", kernels, inputs, targets) == "reference":
        loss = reference.sigmoid_focal(inputs, targets, alpha, gamma)
        wide = torch.float32 if inputs.dtype in (torch.bfloat16, torch.float16) else inputs.dtype
        return loss if reduction == "none" else getattr(loss, reduction)(dtype=wide)
    if not torch.is_grad_enabled():
        inputs = inputs.detach()
    if reduction == "none":
        return _SigmoidFocal.apply(inputs, targets, alpha, gamma)
    return _SigmoidFocalTotal.apply(inputs, targets, alpha, gamma, reduction)


def _check(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> None:
    checks.floating("inputs", inputs)
    if not isinstance(targets, Tensor):
        raise ThawkitError(f"targets must be a tensor, got {type(targets).__name__}")
    if inputs.shape != targets.shape:
        raise ThawkitError(
            f"targets must have the shape of inputs, {tuple(inputs.shape)}, got {tuple(targets.shape)}"
        )
    checks.same_device("targets", targets, "inputs", inputs)
    checks.finite("alpha", alpha)
    checks.finite("gamma", gamma)
    if alpha > 1:
        raise ThawkitError(f"alpha must be in [0, 1], or negative for no class weights, got {alpha}")
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    checks.reduced("inputs", inputs.numel(), reduction)


def _backend(x: Tensor) -> ModuleType:
    return cpu if x.device.type == "cpu" else cuda


_rows_op = define(
    "sigmoid_focal(Tensor x, Tensor t, float alpha, float gamma) -> Tensor",
    lambda x, t, alpha, gamma: _backend(x).rows(x.contiguous(), t.contiguous(), alpha, gamma),
    lambda x, t, alpha, gamma: x.new_empty(x.shape),
)
_total_op = define(
    "sigmoid_focal_total(Tensor x, Tensor t, float alpha, float gamma, float factor, bool need_gradient) "
    "-> (Tensor, Tensor)",
    lambda x, t, alpha, gamma, factor, need_gradient: _backend(x).total(
        x.contiguous(), t.contiguous(), alpha, gamma, factor, need_gradient
    ),
    lambda x, t, alpha, gamma, factor, need_gradient: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if need_gradient else empty(x),
    ),
)
_backward_op = define(
    "sigmoid_focal_backward(Tensor g, Tensor x, Tensor t, float alpha, float gamma) -> Tensor",
    lambda g, x, t, alpha, gamma: _backend(x).backward(
        g.contiguous(), x.contiguous(), t.contiguous(), alpha, gamma
    ),
    lambda g, x, t, alpha, gamma: x.new_empty(x.shape),
)


def _differentiable(g: Tensor, x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """The gradient by the reference, itself differentiable: what double backward needs."""
    loss = reference.sigmoid_focal(x, t, alpha, gamma)
    return torch.autograd.grad(loss, x, g.expand_as(loss).to(loss.dtype), create_graph=True)[0]


class _SigmoidFocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.options = alpha, gamma
        return _rows_op(x, t, alpha, gamma)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, t = ctx.saved_tensors
        double = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dx = (_differentiable if double else _backward_op)(g, x, t, *ctx.options)
        return dx, None, None, None


class _SigmoidFocalTotal(torch.autograd.Function):
    """Sum or mean: the gradient leaves the same pass as the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
        factor = 1.0 / x.numel() if reduction == "mean" else 1.0
        value, gradient = _total_op(x, t, alpha, gamma, factor, ctx.needs_input_grad[0])
        ctx.save_for_backward(x, t, gradient)
        ctx.options = alpha, gamma, factor
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, t, gradient = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            alpha, gamma, factor = ctx.options
            return _differentiable(g * factor, x, t, alpha, gamma), None, None, None, None
        return *scaled((gradient,), g, (True,)), None, None, None, None
