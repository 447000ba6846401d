"""Losses on all pairs of two sets of rows, without the matrix of pairs: schema, checks, gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define, empty, scaled
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, cuda, reference, triton

__all__ = ["info_nce", "mmd"]

_INFO_NCE = {"cpu": cpu, "cuda": cuda, "triton": triton}
_INFO_NCE_OBJECTIONS = {name: module.objection for name, module in _INFO_NCE.items()}
_MMD_OBJECTIONS = {"cpu": cpu.objection}
BACKENDS = {"info_nce": tuple(_INFO_NCE), "mmd": tuple(_MMD_OBJECTIONS)}


# ---- InfoNCE


def info_nce(
    q: Tensor, k: Tensor, logit_scale: Tensor | float, *, normalize: bool = True, reduction: str = "mean"
) -> Tensor:
    """InfoNCE loss (van den Oord et al. 2018, eq. 4): ``k[i]`` is the positive of ``q[i]``.

    Args:
        q: (N, D) queries.
        k: (M, D) keys of the same dtype, M >= N; the keys past N are negatives only.
        logit_scale: inverse temperature, a number or a tensor of one element, which gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or there is nothing to take the mean of.
    """
    _check_info_nce(q, k, logit_scale, reduction)
    if isinstance(logit_scale, Tensor):
        scale = logit_scale.reshape(())
    else:
        scale = torch.full((), float(logit_scale), dtype=torch.float64 if q.dtype == torch.float64 else None)
    scale = scale.to(q.device)
    backend = choose("info_nce", _INFO_NCE_OBJECTIONS, q, k)
    if backend == "reference":
        if q.dtype in (torch.bfloat16, torch.float16):
            q, k = q.float(), k.float()
        return _reduce(reference.info_nce(q, k, scale, normalize), reduction)
    if not torch.is_grad_enabled():
        q, k, scale = q.detach(), k.detach(), scale.detach()
    return _InfoNCE.apply(q, k, scale, normalize, reduction, backend)


def _check_info_nce(q: Tensor, k: Tensor, logit_scale: Tensor | float, reduction: str) -> None:
    checks.matrix("q", q)
    checks.matrix("k", k)
    checks.same_device("k", k, "q", q)
    checks.same_features("q", q, "k", k)
    if q.dtype != k.dtype:
        raise ThawkitError(f"q and k must have the same dtype, got {q.dtype} and {k.dtype}")
    if k.shape[0] < q.shape[0]:
        raise ThawkitError(
            f"k must have at least as many rows as q, whose positives they are, "
            f"got {k.shape[0]} < {q.shape[0]}"
        )
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1:
            raise ThawkitError(f"logit_scale must have one element, got shape {tuple(logit_scale.shape)}")
    else:
        checks.finite("logit_scale", logit_scale)
    checks.reduced("q", q.shape[0], reduction)


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()


def _info_nce_kernel(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _INFO_NCE[backend].info_nce(
        q, k, scale, row_weight, weight, normalize, need_dq, need_dk, need_dscale
    )


def _info_nce_fake(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = q.new_empty(q.shape[0], dtype=torch.float32)
    return (
        loss,
        loss.new_empty(()),
        q.new_empty(q.shape) if need_dq else empty(q),
        k.new_empty(k.shape) if need_dk else empty(k),
        loss.new_empty(()) if need_dscale else empty(loss),
    )


_info_nce_op = define(
    "info_nce(Tensor q, Tensor k, Tensor scale, Tensor? row_weight, float weight, bool normalize, "
    "bool need_dq, bool need_dk, bool need_dscale, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _info_nce_kernel,
    _info_nce_fake,
)


class _InfoNCE(torch.autograd.Function):
    """Reduced losses get their gradients in the forward pass, unreduced ones in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, scale: Tensor, normalize: bool, reduction: str, backend: str
    ) -> Tensor:
        ctx.options = normalize, reduction, backend
        need = ctx.needs_input_grad[:3] if reduction != "none" else (False, False, False)
        weight = 1.0 / q.shape[0] if reduction == "mean" else 1.0
        rows, total, *gradients = _info_nce_op(q, k, scale, None, weight, normalize, *need, backend)
        ctx.save_for_backward(q, k, scale, *gradients)
        return rows if reduction == "none" else total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, *saved = ctx.saved_tensors
        normalize, reduction, backend = ctx.options
        need = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            loss = _reduce(reference.info_nce(q.float(), k.float(), scale, normalize), reduction)
            wanted = [x for x, needed in zip((q, k, scale), need, strict=True) if needed]
            found = iter(torch.autograd.grad(loss, wanted, g, create_graph=True))
            return *(next(found) if needed else None for needed in need), None, None, None
        if reduction == "none":
            _, _, *gradients = _info_nce_op(q, k, scale, g, 1.0, normalize, *need, backend)
        else:
            gradients = [scaled(x, g) if needed else x for x, needed in zip(saved, need, strict=True)]
        dq, dk, dscale = (x if needed else None for x, needed in zip(gradients, need, strict=True))
        if dscale is not None:
            dscale = dscale.to(scale.dtype)
        return dq, dk, dscale, None, None, None


# ---- MMD


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
    objections = {} if gamma.requires_grad else _MMD_OBJECTIONS
    if choose("mmd", objections, x, y) == "reference":
        if x.dtype in (torch.bfloat16, torch.float16):
            x, y = x.float(), y.float()
        return reference.mmd(x, y, gamma, relative, unbiased)
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
            value = reference.mmd(x.float(), y.float(), gamma, *ctx.options)
            wanted = [sample for sample, needed in ((x, need_x), (y, need_y)) if needed]
            found = iter(torch.autograd.grad(value, wanted, g, create_graph=True))
            gradients = next(found) if need_x else None, next(found) if need_y else None
        else:
            gradients = scaled(dx, g) if need_x else None, scaled(dy, g) if need_y else None
        return *gradients, None, None, None, None
