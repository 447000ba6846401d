"""The softmax focal loss's operators: schema, gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.ops._library import define, empty, scaled
from thawkit.ops.focal import cpu, cuda, reference, triton
from thawkit.ops.pairwise.common import lifted


class Options(NamedTuple):
    """Everything of a call but logits and target, in the order of the schema."""

    alpha: Tensor | None
    offset: Tensor | None
    margin: Tensor | None
    scale: float
    gamma: float
    smoothing: float
    ignored: int
    backend: str


_SCHEMA = (
    "Tensor x, Tensor t, Tensor? alpha, Tensor? offset, Tensor? margin, float scale, float gamma, "
    "float smoothing, int ignored, str backend"
)


_KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "triton": triton}


def _dense(alpha: Tensor | None, offset: Tensor | None, margin: Tensor | None, *numbers: Any) -> Options:
    of, off, less = (None if v is None else v.contiguous() for v in (alpha, offset, margin))
    return Options(of, off, less, *numbers)


_rows_op = define(
    f"softmax_focal({_SCHEMA}) -> Tensor",
    lambda x, t, *options: _KERNELS[options[-1]].softmax_rows(
        x.contiguous(), t.contiguous(), _dense(*options)
    ),
    lambda x, t, *options: x.new_empty(x.shape[:1] + x.shape[2:], dtype=torch.float32),
)
_total_op = define(
    f"softmax_focal_total({_SCHEMA}, float factor, Tensor? divisor, bool need_gradient) -> (Tensor, Tensor)",
    lambda x, t, *rest: _KERNELS[rest[-4]].softmax_total(
        x.contiguous(), t.contiguous(), _dense(*rest[:-3]), *rest[-3:]
    ),
    lambda x, t, *rest: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if rest[-1] else empty(x),
    ),
)
_backward_op = define(
    f"softmax_focal_backward(Tensor g, {_SCHEMA}) -> Tensor",
    lambda g, x, t, *options: _KERNELS[options[-1]].softmax_backward(
        g.contiguous(), x.contiguous(), t.contiguous(), _dense(*options)
    ),
    lambda g, x, t, *options: x.new_empty(x.shape),
)


def _differentiable(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The gradient by the reference, itself differentiable: what double backward needs."""
    alpha, offset, margin, scale, gamma, smoothing, ignored, _ = options
    loss = reference.softmax_focal(lifted(x), t, alpha, gamma, smoothing, ignored, scale, offset, margin)
    return torch.autograd.grad(loss, x, g.expand_as(loss).to(loss.dtype), create_graph=True)[0]


class SoftmaxFocal(torch.autograd.Function):
    """Losses of the positions of x and t, the options' tensors, and their numbers as one tuple."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        alpha: Tensor | None,
        offset: Tensor | None,
        margin: Tensor | None,
        numbers: tuple[Any, ...],
    ) -> Tensor:
        """Return the losses."""
        ctx.save_for_backward(x, t, alpha, offset, margin)
        ctx.numbers = numbers
        return _rows_op(x, t, alpha, offset, margin, *numbers)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``."""
        x, t, *vectors = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx = _differentiable(g, x, t, Options(*vectors, *ctx.numbers))
        else:
            dx = _backward_op(g, x, t, *vectors, *ctx.numbers)
        return dx, None, None, None, None, None


class SoftmaxFocalTotal(torch.autograd.Function):
    """Their sum times ``factor / division``: the gradient leaves the same pass as the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        factor: float,
        division: Tensor | None,
        alpha: Tensor | None,
        offset: Tensor | None,
        margin: Tensor | None,
        numbers: tuple[Any, ...],
    ) -> Tensor:
        """Return the scaled sum as a float32 scalar."""
        value, gradient = _total_op(
            x, t, alpha, offset, margin, *numbers, factor, division, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(x, t, alpha, offset, margin, gradient, division)
        ctx.numbers, ctx.factor = numbers, factor
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``."""
        x, t, *vectors, gradient, division = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            g = g * ctx.factor if division is None else g * ctx.factor / division
            dx: Tensor | None = _differentiable(g, x, t, Options(*vectors, *ctx.numbers))
        else:
            (dx,) = scaled((gradient,), g, (True,))
        return dx, None, None, None, None, None, None, None
