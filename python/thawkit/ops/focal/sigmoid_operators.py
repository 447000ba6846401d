"""The sigmoid focal loss's operators: schema, gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawkit.ops._library import define, empty, scaled
from thawkit.ops.focal import cpu, cuda, reference, triton
from thawkit.ops.focal.weights import Packed, unpacked
from thawkit.ops.pairwise.common import lifted


class Options(NamedTuple):
    """Everything of a call but logits and targets, in the order of the schema."""

    classes: Tensor | None
    mask: Tensor | None
    row_weight: Tensor | None
    positive: float
    negative: float
    gamma: float
    period: int
    row: int
    ignored: float | None
    smoothing: float
    separate: bool
    backend: str


_SCHEMA = (
    "Tensor x, Tensor t, Tensor? classes, Tensor? mask, Tensor? row_weight, float positive, float negative, "
    "float gamma, int period, int row, float? ignored, float smoothing, bool separate, "
    "str backend"
)


def counting(inputs: Tensor, targets: Tensor, mask: Tensor | None, ignored: int | None) -> Tensor | None:
    """Return where losses count, in a shape that broadcasts to ``inputs``; None: everywhere."""
    if ignored is None:
        return mask
    kept = targets != ignored
    if targets.dim() < inputs.dim():
        kept = kept.unsqueeze(-1).expand(inputs.shape)
    return kept if mask is None else kept & mask


def one_hot(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the targets of class indices, 0 for every class where an index is none of them."""
    known = (targets >= 0) & (targets < inputs.shape[-1])
    at = targets.where(known, 0).unsqueeze(-1)
    return torch.zeros_like(inputs).scatter(-1, at, known.unsqueeze(-1).to(inputs.dtype))


def _by_definition(x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The elementwise losses by the reference, of what the operators take."""
    kept = counting(x, t, options.mask, None if options.ignored is None else int(options.ignored))
    wide = lifted(x)
    t = one_hot(wide, t) if t.dim() < x.dim() else t.to(wide.dtype)
    if kept is not None:
        wide, t = wide.where(kept, 0), t.where(kept, 0)
    packed = Packed(
        options.positive, options.negative, options.classes, options.period, options.row_weight, options.row
    )
    positive, negative, pos_weight = unpacked(packed, wide)
    loss = reference.sigmoid_focal(
        wide.reshape(-1), t.reshape(-1), positive, negative, options.gamma, pos_weight, options.smoothing,
        options.separate,
    ).reshape(x.shape)  # fmt: skip
    return loss if kept is None else loss.where(kept, 0)


_KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "triton": triton}


def _dense(classes: Tensor | None, mask: Tensor | None, row_weight: Tensor | None, *numbers: Any) -> Options:
    return Options(classes, None if mask is None else mask.contiguous(), row_weight, *numbers)


_rows_op = define(
    f"sigmoid_focal({_SCHEMA}) -> Tensor",
    lambda x, t, *options: _KERNELS[options[-1]].rows(x.contiguous(), t.contiguous(), _dense(*options)),
    lambda x, t, *options: x.new_empty(x.shape),
)
_total_op = define(
    f"sigmoid_focal_total({_SCHEMA}, float factor, Tensor? divisor, bool need_gradient) -> (Tensor, Tensor)",
    lambda x, t, *rest: _KERNELS[rest[-4]].total(
        x.contiguous(), t.contiguous(), _dense(*rest[:-3]), *rest[-3:]
    ),
    lambda x, t, *rest: (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape) if rest[-1] else empty(x),
    ),
)
_backward_op = define(
    f"sigmoid_focal_backward(Tensor g, {_SCHEMA}) -> Tensor",
    lambda g, x, t, *options: _KERNELS[options[-1]].backward(
        g.contiguous(), x.contiguous(), t.contiguous(), _dense(*options)
    ),
    lambda g, x, t, *options: x.new_empty(x.shape),
)


def _differentiable(g: Tensor, x: Tensor, t: Tensor, options: Options) -> Tensor:
    """The gradient by the reference, itself differentiable: what double backward needs."""
    loss = _by_definition(x, t, options)
    return torch.autograd.grad(loss, x, g.expand_as(loss).to(loss.dtype), create_graph=True)[0]


class SigmoidFocal(torch.autograd.Function):
    """Elementwise losses of x and t, the options' tensors, and their numbers as one tuple."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        classes: Tensor | None,
        mask: Tensor | None,
        row_weight: Tensor | None,
        numbers: tuple[Any, ...],
    ) -> Tensor:
        """Return the losses."""
        ctx.save_for_backward(x, t, classes, mask, row_weight)
        ctx.numbers = numbers
        return _rows_op(x, t, classes, mask, row_weight, *numbers)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``."""
        x, t, *vectors = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx = _differentiable(g, x, t, Options(*vectors, *ctx.numbers))
        else:
            dx = _backward_op(g, x, t, *vectors, *ctx.numbers)
        return dx, None, None, None, None, None


class SigmoidFocalTotal(torch.autograd.Function):
    """Their sum times ``factor / division``: the gradient leaves the same pass as the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        factor: float,
        division: Tensor | None,
        classes: Tensor | None,
        mask: Tensor | None,
        row_weight: Tensor | None,
        numbers: tuple[Any, ...],
    ) -> Tensor:
        """Return the scaled sum as a float32 scalar."""
        value, gradient = _total_op(
            x, t, classes, mask, row_weight, *numbers, factor, division, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(x, t, classes, mask, row_weight, gradient, division)
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
