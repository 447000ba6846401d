"""NT-Xent with labels: each pair of one class against its anchor's rows of other classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.ops import checks
from thawkit.ops._library import apart, define, empty
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision, lifted, reduced_over
from thawkit.ops.pairwise.ref import check_ref, common_classes, own_offset
from thawkit.ops.pairwise.row_softmax import OBJECTIONS, Columns, row_softmax
from thawkit.ops.pairwise.triplet import REDUCTIONS

_PANEL = 128  # anchors, sorted by class, whose positives are multiplied at once


def nt_xent_labels(
    embeddings: Tensor,
    labels: Tensor,
    temperature: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | None = None,
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1) of all pairs of one label, the negatives being of other labels.

    Args:
        embeddings: (N, D) anchors.
        labels: (N,) integers.
        temperature: a positive number, or a tensor of one element, which gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) sums over each anchor's pairs, ``mean`` is over all pairs,
            ``mean_nonzero`` over those with a loss above 0.
        ref: (M, D) rows of the same dtype to take positives and negatives from; else ``embeddings``.
        ref_labels: (M,) integers, with ``ref``.
        own: row i of ``embeddings`` is row ``own + i`` of ``ref``, with which it makes no pair.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes, devices or labels do not fit, the temperature is not positive, or there
            is nothing to take the mean of.
    """
    checks.matrix("embeddings", embeddings)
    checks.labels("labels", labels, "embeddings", embeddings)
    check_ref(embeddings, ref, ref_labels)
    own = own_offset(own, embeddings, ref)
    checks.positive_scalar("temperature", temperature)
    temperature = checks.one_number("temperature", temperature, embeddings)
    checks.reduced("embeddings", embeddings.shape[0], reduction, REDUCTIONS)
    others = embeddings if ref is None else ref
    with full_precision(embeddings):
        if choose("nt_xent_labels", OBJECTIONS, embeddings, others) == "reference":
            rows, pairs, active = reference.nt_xent_labels(
                lifted(embeddings),
                lifted(others),
                labels,
                labels if ref_labels is None else ref_labels,
                own,
                temperature,
                normalize,
            )
        else:
            # several gradients of the rows add up: they are rounded to half precision afterwards
            embeddings = lifted(embeddings)
            others = embeddings if ref is None else lifted(ref)
            if normalize:
                embeddings = F.normalize(embeddings, dim=1)
                others = embeddings if ref is None else F.normalize(others, dim=1)
            classes = common_classes(labels, ref_labels)
            rows, pairs, active = _on_the_engine(embeddings, others, *classes, own, 1 / lifted(temperature))
        return reduced_over(rows, reduction, (active if reduction == "mean_nonzero" else pairs).sum())


def _on_the_engine(
    z: Tensor, others: Tensor, mine: Tensor, theirs: Tensor, own: int | None, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp over the negatives by the engine; the positives, sorted by class, panel by panel."""
    log_sum = row_softmax(
        z,
        others,
        scale,
        target=torch.full_like(mine, -1),
        row_labels=mine.to(torch.int32),
        key_labels=theirs.to(torch.int32),
        columns=Columns(labels="drop same", excluded=own),
        reduce=False,
    )
    # torch.compile takes no Function whose arguments are one tensor
    z, mine = z.view_as(z), mine.view_as(mine)
    return _PairsOfOneClass.apply(z, others, log_sum, scale, mine, theirs, -1 if own is None else own)


class _Panels(NamedTuple):
    """Anchors and keys sorted by class: a panel of anchors meets the keys of its classes only."""

    parts: list[tuple[Tensor, Tensor]]
    """Indices of anchors and of keys."""
    row_class: Tensor
    key_class: Tensor
    own: int

    @classmethod
    def of(cls, mine: Tensor, theirs: Tensor, own: int) -> _Panels:
        row_class, row = mine.sort()
        key_class, key = theirs.sort()
        starts = range(0, len(row), _PANEL)
        ends = [min(start + _PANEL, len(row)) for start in starts]
        first = torch.searchsorted(key_class, row_class[::_PANEL].contiguous()).tolist()
        # counted on the device: a list of Python's would be copied there
        of_ends = torch.arange(_PANEL - 1, len(row) + _PANEL - 1, _PANEL, device=row.device)
        row_class_of_ends = row_class[of_ends.clamp_max(len(row) - 1)]
        last = torch.searchsorted(key_class, row_class_of_ends, right=True).tolist()
        parts = [
            (row[start:end], key[a:b]) for start, end, a, b in zip(starts, ends, first, last, strict=True)
        ]
        return cls(parts, mine, theirs, own)

    def positive(self, rows: Tensor, keys: Tensor) -> Tensor:
        same = self.row_class[rows, None] == self.key_class[keys]
        return same if self.own < 0 else same & (rows[:, None] + self.own != keys)


def _sums(
    z: Tensor, others: Tensor, log_sum: Tensor, scale: Tensor, mine: Tensor, theirs: Tensor, own: int
) -> tuple[Tensor, Tensor, Tensor]:
    panels = _Panels.of(mine, theirs, own)
    sums = torch.empty_like(log_sum)
    pairs, active = torch.empty_like(mine), torch.empty_like(mine)
    for rows, keys in panels.parts:
        positive = panels.positive(rows, keys)
        losses = _losses(z[rows], others[keys], log_sum[rows], scale, positive)
        sums[rows], pairs[rows], active[rows] = losses.sum(1), positive.sum(1), (losses > 0).sum(1)
    return sums, pairs, active


def _gradients(
    g: Tensor,
    z: Tensor,
    others: Tensor,
    log_sum: Tensor,
    scale: Tensor,
    mine: Tensor,
    theirs: Tensor,
    own: int,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by z and by others, each without elements where ``need`` says so, by log_sum and scale."""
    need_dz, need_dothers = need
    panels = _Panels.of(mine, theirs, own)
    dz = torch.empty_like(z) if need_dz else empty(z)
    dothers = torch.zeros_like(others) if need_dothers else empty(others)
    dlog_sum = torch.empty_like(log_sum)
    dscale = torch.zeros_like(scale)
    for rows, keys in panels.parts:
        z_rows, key_rows = z[rows], others[keys]
        s = z_rows @ key_rows.t()
        slope = torch.sigmoid(log_sum[rows, None] - scale * s).masked_fill(~panels.positive(rows, keys), 0)
        slope *= -g[rows, None]
        dscale += (slope * s).sum()
        dlog_sum[rows] = -slope.sum(1)
        slope *= scale
        if need_dz:
            dz[rows] = slope @ key_rows
        if need_dothers:
            dothers.index_add_(0, keys, slope.t() @ z_rows)
    return dz, dothers, dlog_sum, dscale


# As operators, since how many keys a panel meets depends on the labels' values, which a graph cannot hold.
_sums_operator = define(
    "pairs_of_one_class(Tensor z, Tensor others, Tensor log_sum, Tensor scale, Tensor mine, Tensor theirs, "
    "int own) -> (Tensor, Tensor, Tensor)",
    _sums,
    lambda z, others, log_sum, scale, mine, theirs, own: (
        torch.empty_like(log_sum),
        torch.empty_like(mine),
        torch.empty_like(mine),
    ),
)
_gradients_operator = define(
    "pairs_of_one_class_backward(Tensor g, Tensor z, Tensor others, Tensor log_sum, Tensor scale, "
    "Tensor mine, Tensor theirs, int own, bool[2] need) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    lambda g, z, others, log_sum, scale, mine, theirs, own, need: tuple(
        torch.empty_like(x) if needed else empty(x)
        for x, needed in zip((z, others, log_sum, scale), (*need, True, True), strict=True)
    ),
)


class _PairsOfOneClass(torch.autograd.Function):
    """Sums over each anchor's positives p of ``softplus(log_sum - scale s_p)``, in memory panel by panel."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        others: Tensor,
        log_sum: Tensor,
        scale: Tensor,
        mine: Tensor,
        theirs: Tensor,
        own: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums, pairs, active = _sums_operator(z, others, log_sum, scale, mine, theirs, own)
        ctx.save_for_backward(z, others, log_sum, scale, mine, theirs)
        ctx.own = own
        ctx.mark_non_differentiable(pairs, active)
        return sums, pairs, active

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        # once: checkpointing hands them out only once
        z, others, log_sum, scale, mine, theirs = ctx.saved_tensors
        # autocast may be on where the backward pass is called; its products are not for rounding either
        with full_precision(g):
            slopes = _slopes(g, z, others, log_sum, scale, mine, theirs, ctx.own, ctx.needs_input_grad[:4])
        return *slopes, None, None, None


def _slopes(
    g: Tensor,
    z: Tensor,
    others: Tensor,
    log_sum: Tensor,
    scale: Tensor,
    mine: Tensor,
    theirs: Tensor,
    own: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        found = _gradients_operator(g, z, others, log_sum, scale, mine, theirs, own, list(wanted[:2]))
        return tuple(x if needed else None for x, needed in zip(found, wanted, strict=True))
    z, others, log_sum, scale = apart(z, others, log_sum, scale)
    panels = _Panels.of(mine, theirs, own)
    sums = torch.zeros_like(log_sum)
    for rows, keys in panels.parts:
        losses = _losses(z[rows], others[keys], log_sum[rows], scale, panels.positive(rows, keys))
        sums = sums.index_add(0, rows, losses.sum(1))
    inputs = [t for t, needed in zip((z, others, log_sum, scale), wanted, strict=True) if needed]
    gradients = iter(torch.autograd.grad(sums, inputs, g, create_graph=True))
    return tuple(next(gradients) if needed else None for needed in wanted)


def _losses(z: Tensor, others: Tensor, log_sum: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    return -F.logsigmoid(scale * (z @ others.t()) - log_sum[:, None]).masked_fill(~positive, 0)
