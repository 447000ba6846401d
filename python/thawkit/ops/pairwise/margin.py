"""Losses on the distances of labelled rows, triplets and contrastive pairs: schema, gradient, backend.

The kernel sorts the columns by class and sees all distances of a row at once, so that triplets are mined
without a matrix of distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.ops._library import apart, define, empty, scaled
from thawkit.ops.dispatch import choose, heeding_memory, memory
from thawkit.ops.pairwise import cpu, cuda_margin, reference, triton_margin
from thawkit.ops.pairwise.common import DISTANCES, full_precision, lifted, reduced_over

KERNELS = {"cpu": cpu, "cuda": cuda_margin, "triton": triton_margin}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}

KINDS = ("all", "hard", "semihard", "contrastive")  # in the order of the compiled kernels' MarginLoss
_MEANS = ("sum", "mean", "mean_nonzero")  # and of their MarginMean


def margin_loss(
    name: str,
    embeddings: Tensor,
    ref: Tensor | None,
    margin: Tensor,
    negative_margin: Tensor | None,
    labels: Tensor,
    ref_labels: Tensor | None,
    *,
    kind: str,
    distance: str,
    reduction: str,
) -> Tensor:
    """Return the loss called ``name`` of arguments that have been checked, margins without dimensions.

    ``kind`` is the mining of triplets, or ``contrastive``, which has a ``negative_margin`` and no ``ref``.
    """
    backend = choose(name, OBJECTIONS, embeddings, *(() if ref is None else (ref,)))
    options = kind, distance, reduction
    if backend == "reference":
        with full_precision(embeddings):
            return _definition(embeddings, ref, margin, negative_margin, labels, ref_labels, *options)
    if not torch.is_grad_enabled():
        embeddings, margin = embeddings.detach(), margin.detach()
        ref, negative_margin = (t if t is None else t.detach() for t in (ref, negative_margin))
    if ref is embeddings:
        ref = ref.view_as(ref)  # torch.compile takes no Function whose arguments are one tensor
    if ref_labels is labels:
        ref_labels = labels.view_as(labels)
    return _MarginLoss.apply(
        embeddings, ref, margin, negative_margin, labels, ref_labels, *options, backend, memory()
    )


def _definition(
    embeddings: Tensor,
    ref: Tensor | None,
    margin: Tensor,
    negative_margin: Tensor | None,
    labels: Tensor,
    ref_labels: Tensor | None,
    kind: str,
    distance: str,
    reduction: str,
) -> Tensor:
    embeddings = lifted(embeddings)
    if negative_margin is not None:
        rows = reference.contrastive(embeddings, labels, margin, negative_margin, distance)
        return reduced_over(rows, reduction, _pairs(embeddings))
    others = None if ref is None else lifted(ref)
    rows, mined, active = reference.triplet_margin(
        embeddings, labels, others, ref_labels, margin, kind, distance
    )
    return reduced_over(rows, reduction, (active if reduction == "mean_nonzero" else mined).sum())


def _pairs(embeddings: Tensor) -> int:
    return embeddings.shape[0] * (embeddings.shape[0] - 1) // 2


def _fake(x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    need_dx, need_dy, need_dmargins = rest[-3]
    loss = x.new_empty(x.shape[0], dtype=torch.float32)
    return (
        loss,
        loss.new_empty(()),
        x.new_empty(x.shape) if need_dx else empty(x),
        y.new_empty(y.shape) if need_dy and y is not None else empty(x),
        loss.new_empty(2) if need_dmargins else empty(loss),
    )


_operator = define(
    "margin_loss(Tensor x, Tensor? y, Tensor margin, Tensor? negative_margin, Tensor labels, "
    "Tensor? y_labels, Tensor? row_weight, float weight, str kind, str distance, str reduction, "
    "bool[3] need, str backend, str memory) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    heeding_memory(
        lambda x, y, margin, negative_margin, labels, y_labels, row_weight, weight, kind, distance, reduction,
        need, backend: KERNELS[backend].margin_loss(
            x, y, margin, negative_margin, labels, y_labels, row_weight, weight, KINDS.index(kind),
            DISTANCES.index(distance), _MEANS.index(reduction), *need
        )
    ),
    _fake,
)  # fmt: skip


class _MarginLoss(torch.autograd.Function):
    """Reduced losses get their gradients in the forward pass, unreduced ones in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        margin: Tensor,
        negative_margin: Tensor | None,
        labels: Tensor,
        y_labels: Tensor | None,
        kind: str,
        distance: str,
        reduction: str,
        backend: str,
        memory: str,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:4]
        need = [wanted[0], wanted[1], any(wanted[2:])] if reduction != "none" else [False] * 3
        weight, division = 1.0, "sum" if reduction == "none" else reduction
        if kind == "contrastive" and reduction == "mean":
            weight, division = 1.0 / max(_pairs(x), 1), "sum"
        rows, total, *gradients = _operator(
            x, y, margin, negative_margin, labels, y_labels, None, weight, kind, distance, division, need,
            backend, memory,
        )  # fmt: skip
        ctx.options = kind, distance, reduction, backend, memory
        ctx.save_for_backward(x, y, margin, negative_margin, labels, y_labels, *gradients)
        return rows if reduction == "none" else total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, margin, negative_margin, labels, y_labels, *gradients = ctx.saved_tensors
        kind, distance, reduction, backend, memory = ctx.options
        wanted = ctx.needs_input_grad[:4]
        nothing = (None,) * 7
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x, y, margin, negative_margin = apart(x, y, margin, negative_margin)
            with full_precision(x):
                loss = _definition(x, y, margin, negative_margin, labels, y_labels, kind, distance, reduction)
            inputs = [t for t, needed in zip((x, y, margin, negative_margin), wanted, strict=True) if needed]
            found = iter(torch.autograd.grad(loss, inputs, g, create_graph=True))
            return *(next(found) if needed else None for needed in wanted), *nothing
        need = [wanted[0], wanted[1], any(wanted[2:])]
        if reduction == "none":
            gradients = _operator(
                x, y, margin, negative_margin, labels, y_labels, g, 1.0, kind, distance, "sum", need,
                backend, memory,
            )[2:]  # fmt: skip
        else:
            gradients = scaled(gradients, g, need)
        dx, dy, dmargins = gradients
        return (
            dx if wanted[0] else None,
            dy if wanted[1] else None,
            dmargins[0].to(margin.dtype) if wanted[2] else None,
            dmargins[1].to(negative_margin.dtype) if wanted[3] else None,
            *nothing,
        )
