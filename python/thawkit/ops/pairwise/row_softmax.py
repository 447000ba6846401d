"""Softmax cross-entropy of rows over the rows of another matrix, and the log-sum-exp over some of them.

InfoNCE, SupCon, and the cross-entropy of a linear classifier are views of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as normalized

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import apart, define, empty, scaled
from thawkit.ops.dispatch import choose, heeding_memory, memory
from thawkit.ops.pairwise import cpu, cuda, reference, triton
from thawkit.ops.pairwise.common import full_precision, ignored_rows, lifted

KERNELS = {"cpu": cpu, "cuda": cuda, "triton": triton}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}

LABELS = ("ignored", "drop same", "keep same")


class RowStatistics(NamedTuple):
    """What a pass over the logits knows of each row, besides its loss; (N,) float32, without gradients."""

    loss: Tensor
    positive: Tensor
    """The positive's logit."""
    maximum: Tensor
    """The largest logit of the columns that count, those beyond the margin included; -inf where none does."""

    @property
    def log_sum_exp(self) -> Tensor:
        """Log-sum-exp of the logits that count."""
        return self.loss + self.positive

    @property
    def top1(self) -> Tensor:
        """Whether no logit is above the positive's, (N,) bool."""
        return self.positive >= self.maximum


@dataclass(frozen=True)
class Columns:
    """Which columns count for a row, apart from its positive, which always does.

    Attributes:
        offset: without ``target``, the positive of row i is column i + offset.
        excluded: leave column i + excluded out of row i; None: no such column.
        labels: ``drop same`` leaves columns of the row's own label out, ``keep same`` all others.
        margin: leave columns out whose similarity, whatever the scale, is above the positive's by more than
            this. Not with a bias.
    """

    offset: int = 0
    excluded: int | None = None
    labels: str = "ignored"
    margin: float = math.inf


def row_softmax(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    *,
    target: Tensor | None = None,
    bias: Tensor | None = None,
    row_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    columns: Columns = Columns(),
    row_weight: Tensor | None = None,
    weight: float = 1.0,
    normalize: bool = False,
    reduce: bool = True,
) -> Tensor:
    """Cross-entropy of each row's softmax over the rows of ``k``: ``logsumexp_j s_ij - s_it``.

    ``s = logit_scale q k^T + bias``. With ``reduce`` the gradients come out of the forward pass; without it
    the backward pass computes them, since they depend on the upstream gradient.

    Args:
        q: (N, D).
        k: (M, D), of the same dtype.
        logit_scale: a number or a tensor of one element, which gets a gradient.
        target: (N,) int64 columns of the positives; below 0: none, and the row's loss is the log-sum-exp.
            By default column ``i + columns.offset``.
        bias: (M,) added to the logits of each column.
        row_labels: (N,) int32, for ``columns.labels``.
        key_labels: (M,) int32.
        columns: which columns count.
        row_weight: (N,) factors of the losses; a row of weight 0 has no gradient, whatever it holds.
        weight: factor of every loss where there is no ``row_weight``.
        normalize: divide each row of q and k by its Euclidean norm first.
        reduce: sum the weighted losses.

    Returns:
        A scalar, or with ``reduce=False`` the (N,) losses, unweighted: float64 for float64 inputs, else
        float32.
    """
    return row_softmax_and_statistics(
        q, k, logit_scale, target, bias, row_labels, key_labels, columns, row_weight, weight, normalize,
        reduce, False,
    )[0]  # fmt: skip


def row_softmax_and_statistics(
    q: Tensor,
    k: Tensor,
    logit_scale: Tensor | float,
    target: Tensor | None = None,
    bias: Tensor | None = None,
    row_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    columns: Columns = Columns(),
    row_weight: Tensor | None = None,
    weight: float = 1.0,
    normalize: bool = False,
    reduce: bool = True,
    statistics: bool = True,
) -> tuple[Tensor, RowStatistics | None]:
    """Return what :func:`row_softmax` does, and what the same pass knows besides."""
    scale = checks.one_number("logit_scale", logit_scale, q)
    if bias is not None and columns.margin < math.inf:
        raise ThawkitError(f"bias must be None where columns have a margin, got margin={columns.margin}")
    if k is q:
        k = k.view_as(k)  # torch.compile takes no Function whose arguments are one tensor
    backend = choose("row_softmax", OBJECTIONS, q, k)
    if bias is not None and scale.requires_grad and normalize and backend == "cpu":
        # the kernel's logits hold the bias: the scale's gradient comes from that of the rows, as normalized
        q, k, normalize = normalized(lifted(q), dim=1), normalized(lifted(k), dim=1), False
    if backend == "reference":
        loss, *rest = _definition(
            q, k, scale, target, bias, row_labels, key_labels, row_weight if reduce else None, columns,
            normalize,
        )  # fmt: skip
        stats = RowStatistics(loss.detach(), *(x.detach() for x in rest))
        total = _reduced(loss, row_weight, weight) if reduce else loss
        return total, stats
    if not torch.is_grad_enabled():
        q, k, scale = q.detach(), k.detach(), scale.detach()
    options = columns, weight, normalize, reduce, statistics, backend, memory()
    results = _RowSoftmax.apply(q, k, scale, bias, row_weight, target, row_labels, key_labels, options)
    return (results[0], RowStatistics(*results[1:])) if statistics else (results, None)


def _definition(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    row_weight: Tensor | None,
    columns: Columns,
    normalize: bool,
) -> tuple[Tensor, ...]:
    q, k = lifted(q), lifted(k)
    others = scale, target, bias, row_labels, key_labels, columns, normalize
    with full_precision(q):
        ignored = ignored_rows(row_weight, q)
        if ignored is None:
            return reference.row_softmax(q, k, *others)
        known = reference.row_softmax(q.masked_fill(ignored[:, None], 0), k, *others)
        return tuple(x.masked_fill(ignored, torch.nan) for x in known)


def _reduced(loss: Tensor, row_weight: Tensor | None, weight: float) -> Tensor:
    if row_weight is None:
        return loss.sum() * weight
    return (loss.where((row_weight != 0) | loss.isfinite(), 0.0) * row_weight).sum()


def _kernel(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    offset: int,
    excluded: int,
    labels: int,
    margin: float,
    need: list[bool],
    backend: str,
) -> tuple[Tensor | None, ...]:
    return KERNELS[backend].row_softmax(
        q, k, scale, target, bias, row_labels, key_labels, row_weight, weight, normalize, offset, excluded,
        labels, margin, *need,
    )  # fmt: skip


def _fake(q: Tensor, k: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, (need_dq, need_dk, need_dscale, need_dbias, need_statistics), _, _ = rest
    loss = q.new_empty(q.shape[0], dtype=torch.float32)
    by_product = torch.empty_like if need_statistics else empty
    return (
        loss,
        loss.new_empty(()),
        by_product(loss),
        by_product(loss),
        q.new_empty(q.shape) if need_dq else empty(q),
        k.new_empty(k.shape) if need_dk else empty(k),
        loss.new_empty(()) if need_dscale else empty(loss),
        loss.new_empty(k.shape[0]) if need_dbias else empty(loss),
    )


_operator = define(
    "row_softmax(Tensor q, Tensor k, Tensor scale, Tensor? target, Tensor? bias, Tensor? row_labels, "
    "Tensor? key_labels, Tensor? row_weight, float weight, bool normalize, int offset, int excluded, "
    "int labels, float margin, bool[5] need, str backend, str memory) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    heeding_memory(_kernel),
    _fake,
)


class _RowSoftmax(torch.autograd.Function):
    """Reduced losses get their gradients in the forward pass, unreduced ones in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        row_weight: Tensor | None,
        target: Tensor | None,
        row_labels: Tensor | None,
        key_labels: Tensor | None,
        options: tuple,
    ) -> Tensor | tuple[Tensor, ...]:
        columns, weight, normalize, reduce, statistics, backend, memory = options
        need = [*ctx.needs_input_grad[:4], statistics] if reduce else [False] * 4 + [statistics]
        loss, total, positive, maximum, *gradients = _operator(
            q, k, scale, target, bias, row_labels, key_labels, row_weight, weight, normalize,
            *_numbers(columns), need, backend, memory,
        )  # fmt: skip
        ctx.columns, ctx.weight, ctx.normalize, ctx.reduce, ctx.where = (
            columns, weight, normalize, reduce, (backend, memory),
        )  # fmt: skip
        weighed = loss if row_weight is not None and ctx.needs_input_grad[4] and reduce else None
        ctx.save_for_backward(
            q, k, scale, bias, row_weight, target, row_labels, key_labels, weighed, *gradients
        )
        if not statistics:
            return total if reduce else loss
        by_products = loss.detach(), positive, maximum
        ctx.mark_non_differentiable(*by_products)
        return total if reduce else loss, *by_products

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        q, k, scale, bias, row_weight, target, row_labels, key_labels, weighed, *saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:5]
        need = list(wanted[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            q, k, scale, bias, row_weight = apart(q, k, scale, bias, row_weight)
            loss, *_ = _definition(
                q, k, scale, target, bias, row_labels, key_labels, row_weight if ctx.reduce else None,
                ctx.columns, ctx.normalize,
            )  # fmt: skip
            if ctx.reduce:
                loss = _reduced(loss, row_weight, ctx.weight)
            inputs = [x for x, needed in zip((q, k, scale, bias, row_weight), wanted, strict=True) if needed]
            found = iter(torch.autograd.grad(loss, inputs, g, create_graph=True))
            return *(next(found) if needed else None for needed in wanted), None, None, None, None
        if ctx.reduce:
            gradients = scaled(saved, g, need)
        else:
            gradients = list(
                _operator(
                    q, k, scale, target, bias, row_labels, key_labels, g, 1.0, ctx.normalize,
                    *_numbers(ctx.columns), [*need, False], *ctx.where,
                )[4:]
            )  # fmt: skip
        dq, dk, dscale, dbias = (x if needed else None for x, needed in zip(gradients, need, strict=True))
        if dscale is not None:
            dscale = dscale.to(scale.dtype)
        if dbias is not None:
            dbias = dbias.to(bias.dtype)
        dweight = None
        if weighed is not None:
            usable = (row_weight != 0) | weighed.isfinite()
            dweight = (weighed * g).where(usable, 0.0).to(row_weight.dtype)
        return dq, dk, dscale, dbias, dweight, None, None, None, None


def _numbers(columns: Columns) -> tuple[int, int, int, float]:
    excluded = -1 if columns.excluded is None else columns.excluded
    return columns.offset, excluded, LABELS.index(columns.labels), columns.margin
