"""Squared MMD of two samples, without the matrix of pairs: schema, checks, gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import apart, define, empty, scaled
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, reference
from thawkit.ops.pairwise.common import full_precision, lifted

OBJECTIONS = {"cpu": cpu.objection}


def mmd(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    *,
    relative: bool = False,
    doubling: bool = False,
    unbiased: bool = False,
) -> Tensor:
    """Squared MMD with the kernel ``k(u, v) = sum_b exp(-gamma_b |u - v|^2)`` (Gretton et al. 2012).

    Args:
        x: (N, D) sample.
        y: (M, D) sample of the same dtype.
        gamma: (B,) positive numbers. A gamma that requires a gradient goes by the reference.
        relative: gamma is in units of the inverse mean squared distance of all pairs of distinct rows, which
            is taken without a gradient.
        doubling: promise that ``gamma[b] == gamma[0] * 2**b``; one exponential then serves all bandwidths.
        unbiased: the U-statistic (eq. 3), which can be negative, instead of the V-statistic (eq. 5).

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a sample is too small.
    """
    _check_mmd(x, y, gamma, unbiased)
    objections = {} if gamma.requires_grad else OBJECTIONS
    if choose("mmd", objections, x, y) == "reference":
        with full_precision(x):
            return reference.mmd(lifted(x), lifted(y), gamma, relative, unbiased)
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()
    return _MMD.apply(x, y, gamma, relative, doubling, unbiased)


def _check_mmd(x: Tensor, y: Tensor, gamma: Tensor, unbiased: bool) -> None:
    checks.matrix("x", x)
    checks.matrix("y", y)
    checks.same_device("y", y, "x", x)
    checks.same_features("x", x, "y", y)
    if x.dtype != y.dtype:
        raise ThawkitError(f"x and y must have the same dtype, got {x.dtype} and {y.dtype}")
    if gamma.dim() != 1 or gamma.numel() == 0:
        raise ThawkitError(f"gamma must have shape (bandwidths,), got {tuple(gamma.shape)}")
    least = 2 if unbiased else 1
    for name, sample in (("x", x), ("y", y)):
        if sample.shape[0] < least:
            raise ThawkitError(f"{name} must have at least {least} rows, got {sample.shape[0]}")


_mmd_op = define(
    "mmd(Tensor x, Tensor y, Tensor gamma, bool relative, bool doubling, bool unbiased, bool need_gradient) "
    "-> (Tensor, Tensor, Tensor)",
    cpu.mmd,
    lambda x, y, gamma, relative, doubling, unbiased, need_gradient: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if need_gradient else empty(x),
        y.new_empty(y.shape) if need_gradient else empty(y),
    ),
)


class _MMD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, gamma: Tensor, relative: bool, doubling: bool, unbiased: bool
    ) -> Tensor:
        need = any(ctx.needs_input_grad[:2])
        value, dx, dy = _mmd_op(x, y, gamma, relative, doubling, unbiased, need)
        ctx.save_for_backward(x, y, gamma, dx, dy)
        ctx.options = relative, unbiased
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_y = ctx.needs_input_grad[:2]
        x, y, gamma, dx, dy = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x, y = apart(x, y)
            with full_precision(x):
                value = reference.mmd(lifted(x), lifted(y), gamma, *ctx.options)
            wanted = [sample for sample, needed in ((x, need_x), (y, need_y)) if needed]
            found = iter(torch.autograd.grad(value, wanted, g, create_graph=True))
            gradients = [next(found) if needed else None for needed in (need_x, need_y)]
        else:
            gradients = scaled((dx, dy), g, (need_x, need_y))
        return *gradients, None, None, None, None
