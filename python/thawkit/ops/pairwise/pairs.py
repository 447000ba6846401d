"""CLIP, SigLIP and NT-Xent: schema, gradient, choice of backend.

Their slopes are known entry by entry once the sums of rows and columns are, so both directions share one
matrix of scores, and NT-Xent, whose matrix is symmetric, needs its upper triangle only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import apart, define, empty, scaled
from thawkit.ops.dispatch import choose, heeding_memory, memory
from thawkit.ops.pairwise import cpu, cuda, reference, triton
from thawkit.ops.pairwise.common import full_precision, lifted

KERNELS = {"cpu": cpu, "cuda": cuda, "triton": triton}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}

KINDS = ("clip", "siglip", "nt_xent")  # in the order of the compiled kernels' PairLoss


def pair_loss(
    kind: str,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    *,
    normalize: bool,
    weight: float | None,
    offset: int | None = 0,
) -> Tensor:
    """Return the loss of arguments that have been checked; for ``nt_xent`` x holds both views, y is None.

    The scale and the bias are tensors without dimensions. The rows' losses are summed times ``weight``, or
    given as they are where it is None. For ``siglip`` ``y[i + offset]`` belongs to ``x[i]``, and none to any
    where ``offset`` is None.
    """
    samples = (x,) if y is None else (x, y)
    backend = choose(kind, OBJECTIONS, *samples)
    if backend == "reference":
        with full_precision(x):
            return _reduced(_definition(kind, x, y, scale, bias, normalize, offset), weight)
    if not torch.is_grad_enabled():
        x, scale = x.detach(), scale.detach()
        y, bias = (t if t is None else t.detach() for t in (y, bias))
    if y is x:
        y = y.view_as(y)  # torch.compile takes no Function whose arguments are one tensor
    return _PairLoss.apply(x, y, scale, bias, kind, normalize, weight, offset, backend, memory())


def _reduced(rows: Tensor, weight: float | None) -> Tensor:
    return rows if weight is None else rows.sum() * weight


def _definition(
    kind: str,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    normalize: bool,
    offset: int | None,
) -> Tensor:
    x = lifted(x)
    if y is None:
        half = x.shape[0] // 2
        return reference.nt_xent(x[:half], x[half:], 1 / scale, normalize)
    y = lifted(y)
    if bias is None:
        return reference.clip(x, y, scale, normalize)
    return reference.siglip(x, y, scale, bias, normalize, offset)


def _fake(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, row_weight: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    need_dx, need_dy, need_dscale, need_dbias = rest[-3]
    loss = x.new_empty(x.shape[0], dtype=torch.float32)
    return (
        loss,
        loss.new_empty(()),
        x.new_empty(x.shape) if need_dx else empty(x),
        y.new_empty(y.shape) if need_dy and y is not None else empty(x),
        loss.new_empty(()) if need_dscale else empty(loss),
        loss.new_empty(()) if need_dbias else empty(loss),
    )


_operator = define(
    "pair_loss(Tensor x, Tensor? y, Tensor scale, Tensor? bias, Tensor? row_weight, float weight, str kind, "
    "int? offset, bool normalize, bool[4] need, str backend, str memory) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    heeding_memory(
        lambda x, y, scale, bias, row_weight, weight, kind, offset, normalize, need, backend: KERNELS[
            backend
        ].pair_loss(x, y, scale, bias, row_weight, weight, KINDS.index(kind), offset, normalize, *need)
    ),
    _fake,
)


class _PairLoss(torch.autograd.Function):
    """Reduced losses get their gradients in the forward pass, unreduced ones in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        scale: Tensor,
        bias: Tensor | None,
        kind: str,
        normalize: bool,
        weight: float | None,
        offset: int | None,
        backend: str,
        memory: str,
    ) -> Tensor:
        need = [False] * 4 if weight is None else list(ctx.needs_input_grad[:4])
        rows, total, *gradients = _operator(
            x, y, scale, bias, None, 1.0 if weight is None else weight, kind, offset, normalize, need,
            backend, memory,
        )  # fmt: skip
        ctx.options = kind, normalize, weight, offset, backend, memory
        ctx.save_for_backward(x, y, scale, bias, *gradients)
        return rows if weight is None else total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, *saved = ctx.saved_tensors
        kind, normalize, weight, offset, backend, memory = ctx.options
        need = list(ctx.needs_input_grad[:4])
        nothing = (None,) * 6
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x, y, scale, bias = apart(x, y, scale, bias)
            with full_precision(x):
                loss = _reduced(_definition(kind, x, y, scale, bias, normalize, offset), weight)
            wanted = [t for t, needed in zip((x, y, scale, bias), need, strict=True) if needed]
            found = iter(torch.autograd.grad(loss, wanted, g, create_graph=True))
            return *(next(found) if needed else None for needed in need), *nothing
        if weight is None:
            options = 1.0, kind, offset, normalize, need, backend, memory
            gradients = _operator(x, y, scale, bias, g, *options)[2:]
        else:
            gradients = scaled(saved, g, need)
        dx, dy, dscale, dbias = (t if needed else None for t, needed in zip(gradients, need, strict=True))
        return (
            dx,
            dy,
            None if dscale is None else dscale.to(scale.dtype),
            None if dbias is None else dbias.to(bias.dtype),
            *nothing,
        )
