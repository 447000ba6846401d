"""The losses on distances with margins on a GPU: panels of cuBLAS products, one kernel that mines each row.

Products are of float32 rows, whatever comes, since what is mined turns on small differences of distances. The
kernels are Triton's or CUDA C++'s, which take the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.kernels.panel import Panel, Rows
from thawkit.ops.pairwise.common import full_precision
from thawkit.ops.pairwise.gpu_panels import Operand, Slopes, floats, panels, total
from thawkit.ops.pairwise.reference.distances import centre

_HARD, _SEMIHARD, _CONTRASTIVE = 1, 2, 3  # of the places in margin.KINDS
_MINED, _ACTIVE = 1, 2  # what the mean is over


class Kernels(NamedTuple):
    """What runs on panels; ``kernels/margin.py`` says what each takes."""

    distances: Callable[..., None]
    all_triplets: Callable[..., None]
    semihard_triplets: Callable[..., None]
    hardest_triplet: Callable[..., None]
    contrastive_pairs: Callable[..., None]


class _Classes(NamedTuple):
    """The columns in the order of their classes, and where each row's class is among them."""

    order: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, labels: Tensor, column_labels: Tensor | None) -> _Classes:
        """Where there are no other columns the rows are sorted, too."""
        labels = labels.to(torch.int64)
        others = labels if column_labels is None else column_labels.to(torch.int64)
        by_class, order = others.sort(stable=True)
        labels = by_class if column_labels is None else labels.contiguous()
        first = torch.searchsorted(by_class, labels, out_int32=True)
        return cls(order, first, torch.searchsorted(by_class, labels, right=True, out_int32=True))

    def place(self) -> Tensor:
        """Return the inverse of ``order``."""
        places = torch.arange(self.order.shape[0], dtype=torch.int32, device=self.order.device)
        return torch.empty_like(places).scatter_(0, self.order, places)

    def mined(self, kind: int, itself: bool) -> Tensor:
        """Return how many triplets are mined of each row (int64)."""
        of_class = self.last.long() - self.first
        positives, negatives = of_class - int(itself), self.order.shape[0] - of_class
        if kind == _HARD:
            return ((positives > 0) & (negatives > 0)).long()
        return positives * (negatives > 0 if kind == _SEMIHARD else negatives)


def margin_loss(
    kernels: Kernels,
    x: Tensor,
    y: Tensor | None,
    margin: Tensor,
    negative_margin: Tensor | None,
    labels: Tensor,
    y_labels: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    kind: int,
    distance: int,
    mean: int,
    need_dx: bool,
    need_dy: bool,
    need_dmargins: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum or mean (float32), and the gradients of the latter."""
    with full_precision(x):
        if x.shape[0] == 0 or (x if y is None else y).shape[0] == 0:
            return _nothing(x, y, need_dx, need_dy, need_dmargins)
        classes = _Classes.of(labels, y_labels)
        itself, weights = y is None, None if row_weight is None else row_weight.float()
        if itself and weights is not None:
            weights = weights[classes.order]
        run = _Run(x, y, classes, weights, weight, kind, distance == 1, need_dx, need_dy and not itself)
        margins = margin, margin if negative_margin is None else negative_margin
        run.over_panels(kernels, *(m.to(x.device, torch.float32) for m in margins))
        count = {_MINED: run.classes.mined(kind, itself), _ACTIVE: run.active}.get(mean)
        divisor = 1.0 if count is None else count.sum().clamp_min(1).float()
        dx, dy = run.gradients(divisor)
        return (
            _unsorted(run.loss, classes.order) if itself else run.loss,
            total(run.loss, weights, weight) / divisor,
            None if dx is None else (_unsorted(dx, classes.order) if itself else dx).to(x.dtype),
            None if dy is None or y is None else _unsorted(dy, classes.order).to(y.dtype),
            run.dmargins() / divisor if need_dmargins else None,
        )


def _nothing(x: Tensor, y: Tensor | None, *need: bool) -> tuple[Tensor | None, ...]:
    loss = torch.zeros_like(floats(x))
    gradients = loss.new_zeros(2)
    return (
        loss,
        loss.sum(),
        torch.zeros_like(x) if need[0] else None,
        torch.zeros_like(y) if need[1] and y is not None else None,
        gradients if need[2] else None,
    )


def _unsorted(x: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(x).index_copy_(0, order, x)


class _Run:
    """One call: its operands, what its kernels write of each row, and the gradients that come of it.

    The gradient by u_i is ``sum_j W_ij u_i - sum_j W_ij v_j``, the first sum being 0 for cosines. Of the
    second one an operand's ``gradient`` is made, of the first one ``row_weights`` and ``column_weights``.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        classes: _Classes,
        row_weight: Tensor | None,
        weight: float,
        kind: int,
        cosine: bool,
        need_dx: bool,
        need_dy: bool,
    ) -> None:
        self.classes, self.row_weight, self.weight, self.kind, self.cosine = (
            classes, row_weight, weight, kind, cosine,
        )  # fmt: skip
        rows = x.float()
        columns = (rows if y is None else y.float())[classes.order]
        if y is None:
            rows = columns
        if not cosine:
            middle = centre(rows) if y is None else centre(rows, columns)
            columns = columns - middle
            rows = columns if y is None else rows - middle
        self.x = Operand(rows, cosine, need_dx)
        self.y = self.x if y is None else Operand(columns, cosine, need_dy)
        self.want = need_dx or need_dy
        self.slopes = Slopes(rows, row_weight, weight)
        self.norms = self.x.rows.square().sum(1)
        self.column_norms = self.norms if y is None else self.y.rows.square().sum(1)
        self.loss, self.row_weights = floats(rows), torch.zeros_like(floats(rows))
        self.column_weights = self.row_weights if y is None else torch.zeros_like(floats(columns))
        self.active = torch.zeros(rows.shape[0], dtype=torch.int64, device=x.device)
        self.within, self.between = torch.zeros_like(self.loss), torch.zeros_like(self.loss)

    def over_panels(self, kernels: Kernels, margin: Tensor, negative_margin: Tensor) -> None:
        """Write the rows' losses, and add up what gradients are wanted."""
        classes = self.classes
        of_columns = classes.order.to(torch.int32), classes.place()
        x, y, dense = self.x, self.y, self.want and self.kind != _HARD
        if self.kind == _CONTRASTIVE:
            y = Operand(x.rows, False, False)  # a row's weights hold those of its columns
        spare = torch.empty(0, device=margin.device)
        for here, panel in panels(x, y, torch.ones_like(margin), self.slopes, dense):
            rows = Rows(
                self.norms[here], self.column_norms, classes.first[here], classes.last[here], *of_columns,
                self.x is self.y, self.cosine,
            )  # fmt: skip
            of_rows = margin, self.loss[here], self.active[here]
            if self.kind == _HARD:
                self._hardest(kernels, panel, rows, *of_rows, here)
                continue
            weights = torch.empty_like(self.loss[here])
            if self.kind == _CONTRASTIVE:
                kernels.contrastive_pairs(
                    panel, rows, margin, negative_margin, self.slopes.rows, self.loss[here],
                    self.within[here], self.between[here], weights,
                )  # fmt: skip
            else:
                distances = panel.scores
                if panel.slopes is not None:
                    spare = torch.empty_like(distances) if spare.numel() < distances.numel() else spare
                    distances = spare[: distances.shape[0]]
                kernels.distances(panel, rows, distances)
                if self.kind == _SEMIHARD and panel.slopes is not None:
                    panel.slopes.zero_()
                mine = kernels.semihard_triplets if self.kind == _SEMIHARD else kernels.all_triplets
                mine(panel, rows, distances, *of_rows, weights)
            if panel.slopes is None:
                continue
            self.row_weights[here] += weights
            if y.gradient is not None and not self.cosine:
                self.column_weights += panel.slopes.sum(0)

    def _hardest(
        self,
        kernels: Kernels,
        panel: Panel,
        rows: Rows,
        margin: Tensor,
        loss: Tensor,
        active: Tensor,
        here: slice,
    ) -> None:
        """A row has two weights: rows are gathered and added instead of multiplying matrices of them."""
        if not self.want:
            kernels.hardest_triplet(panel, rows, margin, loss, active)
            return
        columns = torch.empty(*loss.shape, 2, dtype=torch.int64, device=loss.device)
        weights = torch.empty_like(columns, dtype=torch.float32)
        kernels.hardest_triplet(panel, rows, margin, loss, active, columns, weights)
        self.row_weights[here] += weights.sum(1)
        for column, weight in zip(columns.t(), weights.t(), strict=True):
            if self.x.gradient is not None:
                self.x.gradient[here] += weight[:, None] * self.y.rows[column]
            if self.y.gradient is not None:
                self.y.gradient.index_add_(0, column, weight[:, None] * self.x.rows[here])
                self.column_weights.index_add_(0, column, weight)

    def gradients(self, divisor: Tensor | float) -> tuple[Tensor | None, Tensor | None]:
        """Return those by the rows and the columns, sorted as they are here; None where not wanted."""
        of_y = None if self.x is self.y else self._gradient(self.y, self.column_weights, divisor)
        return self._gradient(self.x, self.row_weights, divisor), of_y

    def _gradient(self, operand: Operand, weights: Tensor, divisor: Tensor | float) -> Tensor | None:
        if operand.gradient is None:
            return None
        of_rows = 0.0 if self.cosine else weights[:, None] * operand.rows
        operand.gradient = of_rows - operand.gradient + self._strange(operand)
        return operand.through(self.slopes.shared / divisor)

    def _strange(self, operand: Operand) -> Tensor:
        """Return 0, or NaN where weights that were not formed, or times infinity, would have been so."""
        if self.kind not in (_HARD, _SEMIHARD, _CONTRASTIVE):
            return self.norms.new_zeros(())
        of_rows = self.norms - self.norms
        no_number = self.column_norms.isnan()[:, None]
        if operand is self.y:
            return of_rows.sum().masked_fill(no_number, torch.nan)
        return of_rows[:, None] + (self.y.rows * 0.0).masked_fill(no_number, torch.nan).sum(0)

    def dmargins(self) -> Tensor:
        """Return the gradients by the margin, or by the positive and the negative one."""
        weight = self.weight if self.row_weight is None else self.row_weight
        if self.kind == _CONTRASTIVE:
            return torch.stack([-(weight * self.within).sum(), (weight * self.between).sum()])
        of_margin = (weight * self.active.float()).sum()
        return torch.stack([of_margin, torch.zeros_like(of_margin)])
