"""csrc/cuda/pairs.cu: CLIP and SigLIP on a panel of scores."""

from __future__ import annotations

import math

import torch
from thawkit.kernels.panel import Panel
from torch import Tensor

from thawkit.ops.pairwise import cuda

from .panels import (
    FACTOR,
    LAYOUTS,
    NOTHING,
    allowed,
    far,
    no_panel,
    panel,
    placed,
    problems,
    solve,
    untouched,
)
from .registry import DTYPES, Run, check, close, poisoned, same


def problems_of_triton(run: Run, problem: str, dtype: torch.dtype) -> None:
    solve(run, problem)


for _dtype in DTYPES:
    check("column_sums_panel", "clip_panel", problem=problems("clip", _dtype), dtype=[_dtype])(
        problems_of_triton
    )
    check("sigmoid_panel", problem=problems("sigmoid", _dtype), dtype=[_dtype])(problems_of_triton)


def sums_truth(scores: Tensor, scale: float, first: int) -> tuple[Tensor, Tensor]:
    """Maxima and sums of the columns, the diagonal left out."""
    logits = scale * scores.double()
    own = torch.arange(len(scores))[:, None] + first == torch.arange(scores.shape[1])
    logits = logits.masked_fill(own, -math.inf)
    maximum = logits.amax(0)
    return maximum, (logits - maximum.where(maximum > -math.inf, 0)).exp().sum(0)


@check("column_sums_panel", rows=[1, 7, 8, 9, 33, 70], columns=[1, 31, 32, 33, 100], scale=[1.0, -3.0])
def sums_of_columns(run: Run, rows: int, columns: int, scale: float) -> None:
    scores, first = torch.randn(rows, columns), 3
    given, memory = placed(scores, 2, 1)
    maximum, total = torch.full((columns,), -math.inf), torch.zeros(columns)
    with run(seed=rows):
        cuda.column_sums(Panel(given, None, first, torch.tensor(scale)), maximum, total)
    true = sums_truth(scores, scale, first)
    close(maximum, true[0], 1e-6, 1e-7)
    close(total, true[1], 4e-6 * (1 + abs(scale)))
    untouched(memory, (rows, columns, 2, 1))
    same(given, scores)


@check("column_sums_panel", lowered=[0.0, 50.0])
def sums_go_on_from_panel_to_panel(run: Run, lowered: float) -> None:
    scores = torch.randn(60, 40) - lowered
    scores[20:40] += 3  # the maximum rises, and does not fall again
    maximum, total = torch.full((40,), -math.inf), torch.zeros(40)
    for first in range(0, 60, 20):
        with run(seed=first):
            part = Panel(scores[first : first + 20], None, first, torch.tensor(4.0))
            cuda.column_sums(part, maximum, total)
    true = sums_truth(scores, 4.0, 0)
    close(maximum, true[0], 1e-6, 1e-7)
    close(total, true[1], 2e-5)


@check("column_sums_panel", value=[math.nan, -math.inf])
def columns_with_numbers_of_their_own(run: Run, value: float) -> None:
    scores, maximum, total = torch.randn(50, 40), torch.full((40,), -math.inf), torch.zeros(40)
    scores[17, 5] = value
    with run():
        cuda.column_sums(Panel(scores, None, 0, torch.tensor(1.0)), maximum, total)
    same(total.isnan(), (torch.arange(40) == 5) & math.isnan(value))
    true = sums_truth(scores, 1.0, 0)
    fine = torch.arange(40) != 5 if math.isnan(value) else slice(None)
    close(total[fine], true[1][fine], 1e-5)


@check("column_sums_panel")
def column_sums_past_two_to_the_31(run: Run) -> None:
    rows = torch.randn(3, 40)
    maximum, total = torch.full((40,), -math.inf), torch.zeros(40)
    with run():
        cuda.column_sums(Panel(far(rows), None, 0, torch.tensor(2.0)), maximum, total)
    true = sums_truth(rows, 2.0, 0)
    close(maximum, true[0], 1e-6, 1e-7)
    close(total, true[1], 1e-5)


class Sums:
    """Of rows and columns whatever a matrix would give them: the kernel takes them as they are."""

    def __init__(self, rows: int, columns: int, first: int) -> None:
        self.first = first
        self.of_rows, self.of_columns = torch.randn(rows) + 4, torch.randn(columns) + 4
        self.missing, self.column_missing = torch.rand(rows), torch.rand(columns)

    def arguments(self) -> tuple[Tensor, ...]:
        return self.of_rows, self.missing, self.of_columns, self.column_missing

    def slopes(
        self, scores: Tensor, scale: float, weight: Tensor | None, column_weight: Tensor | None
    ) -> Tensor:
        """The truth, in float64."""
        logits = scale * scores.double()
        own = torch.arange(len(scores)) + self.first
        of_rows = (logits - self.of_rows.double()[:, None]).exp()
        of_columns = (logits - self.of_columns.double()).exp()
        inside = own < scores.shape[1]
        at = torch.arange(len(scores))[inside], own[inside]
        of_rows[at], of_columns[at] = (
            -self.missing[inside].double(),
            -self.column_missing[own[inside]].double(),
        )
        if weight is not None:
            of_rows = of_rows * weight.double()[:, None]
        if column_weight is not None:
            of_columns = of_columns * column_weight.double()
        return FACTOR * 0.5 * (of_rows + of_columns)


def close_sums(got: Tensor, terms: Tensor) -> None:
    """Require the sums of rows of terms, some of which may cancel."""
    close(got, terms.sum(1), 0, 1e-5 * (1 + float(terms.abs().sum(1).max())))


@check("clip_panel", layout=LAYOUTS, dtype=DTYPES, weighted=[False, True])
def slopes_of_clip(run: Run, layout: tuple, dtype: torch.dtype, weighted: bool) -> None:
    rows, columns, *_ = layout
    scores, sums = torch.randn(rows, columns), Sums(rows, columns, max(0, min(2, columns - rows)))
    weight, column_weight = (torch.randn(rows), torch.randn(columns)) if weighted else (None, None)
    given, memory = panel(scores, dtype, layout, -1.5, sums.first, row_weight=weight)
    dscale = poisoned(rows)
    with run(seed=columns):
        cuda.clip(given, *sums.arguments(), column_weight, dscale)
    true = sums.slopes(scores, -1.5, weight, column_weight)
    assert given.slopes is not None
    close(given.slopes, true, allowed(dtype, 1.5), 1e-6)
    close_sums(dscale, true * scores)
    for room in memory:
        untouched(room, layout)


@check("clip_panel", name=["column_log_sum", "column_weight"])
def columns_that_no_vector_begins(run: Run, name: str) -> None:
    scores, sums, weight = torch.randn(2, 1028), Sums(2, 1028, 1), torch.randn(1028)
    shifted = lambda x, which: torch.cat([x[:1], x])[1:] if which == name else x
    of_rows, missing, of_columns, column_missing = sums.arguments()
    given = scores.clone()
    with run():
        cuda.clip(
            Panel(given, given, 1, torch.tensor(1.0), torch.ones(2), FACTOR), of_rows, missing,
            shifted(of_columns, "column_log_sum"), column_missing, shifted(weight, "column_weight"),
        )  # fmt: skip
    close(given, sums.slopes(scores, 1.0, None, weight), allowed(torch.float32, 1.0), 1e-6)


@check("clip_panel")
def clip_for_the_scale_alone(run: Run) -> None:
    scores, sums, dscale = torch.randn(3, 40), Sums(3, 40, 0), poisoned(3)
    given = scores.clone()
    with run():
        cuda.clip(Panel(given, None, 0, torch.tensor(1.0), factor=FACTOR), *sums.arguments(), None, dscale)
    same(given, scores)
    close_sums(dscale, sums.slopes(scores, 1.0, None, None) * scores)


@check("clip_panel")
def clip_past_two_to_the_31(run: Run) -> None:
    rows, sums, dscale = torch.randn(3, 40), Sums(3, 40, 20), poisoned(3)
    scores = far(rows)
    with run():
        cuda.clip(
            Panel(scores, scores, 20, torch.tensor(1.0), factor=FACTOR), *sums.arguments(), None, dscale
        )
    true = sums.slopes(rows, 1.0, None, None)
    close(scores, true, 2e-5, 1e-6)
    close_sums(dscale, true * rows)


def sigmoid_truth(
    scores: Tensor, scale: float, bias: float, own: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses of the entries, and their slopes."""
    signs = torch.ones(scores.shape, dtype=torch.float64)
    if own is not None:
        inside = (own >= 0) & (own < scores.shape[1])
        signs[torch.arange(len(scores))[inside], own[inside]] = -1
    z = signs * (scale * scores.double() + bias)
    slopes = FACTOR * signs * z.sigmoid()
    return torch.nn.functional.softplus(z), slopes if weight is None else slopes * weight.double()[:, None]


@check("sigmoid_panel", layout=LAYOUTS, dtype=DTYPES, offset=[-3, 0, None])
def losses_and_slopes_of_sigmoids(run: Run, layout: tuple, dtype: torch.dtype, offset: int | None) -> None:
    rows, columns, *_ = layout
    scores, scale, bias = torch.randn(rows, columns), -2.5, -1.5
    weight = torch.randn(rows) if offset else None
    given, memory = panel(scores, dtype, layout, scale, 2, row_weight=weight)
    loss, dscale, dbias = poisoned(rows), poisoned(rows), poisoned(rows)
    with run(seed=columns):
        cuda.sigmoid(given, torch.tensor(bias), offset, loss, dscale, dbias)
    own = None if offset is None else torch.arange(rows) + 2 + offset
    losses, slopes = sigmoid_truth(scores, scale, bias, own, weight)
    close(loss, losses.sum(1), 1e-5)
    assert given.slopes is not None
    close(given.slopes, slopes, allowed(dtype, scale), 1e-7)
    close_sums(dscale, slopes * scores)
    close_sums(dbias, slopes)
    for room in memory:
        untouched(room, layout)


@check("sigmoid_panel")
def sigmoids_of_large_and_tiny_losses(run: Run) -> None:
    """Neither overflows, and what is tiny keeps its digits."""
    scores = torch.tensor([[90.0], [-90.0], [20.0], [-20.0], [1e4], [-1e4], [-40.0]])
    given, loss = scores.clone(), poisoned(7)
    with run():
        cuda.sigmoid(Panel(given, given, 0, torch.tensor(1.0), factor=FACTOR), torch.tensor(0.0), None, loss)
    losses, slopes = sigmoid_truth(scores, 1.0, 0.0, None, None)
    # float32's exponent ends before exp(-90)
    close(loss, losses.sum(1), 4e-5, 1e-37)
    close(given, slopes, 4e-5, 1e-37)


@check("sigmoid_panel", asked=["loss", "dscale", "dbias"])
def sums_of_sigmoids_alone(run: Run, asked: str) -> None:
    scores = torch.randn(3, 300)
    losses, slopes = sigmoid_truth(scores, 2.0, -1.0, torch.arange(3), None)
    given, loss, out = scores.clone(), poisoned(3), {} if asked == "loss" else {asked: poisoned(3)}
    with run():
        cuda.sigmoid(
            Panel(given, None, 0, torch.tensor(2.0), factor=FACTOR), torch.tensor(-1.0), 0, loss, **out
        )
    same(given, scores)
    close(loss, losses.sum(1), 1e-5)
    for name, terms in (("dscale", slopes * scores), ("dbias", slopes)):
        if name in out:
            close_sums(out[name], terms)


@check("sigmoid_panel")
def nan_spoils_the_loss_of_its_row(run: Run) -> None:
    scores, loss = torch.randn(3, 300), poisoned(3)
    scores[1, 77] = math.nan
    with run():
        cuda.sigmoid(Panel(scores, scores, 0, torch.tensor(1.0)), torch.tensor(0.0), 0, loss)
    same(loss.isnan(), torch.tensor([False, True, False]))
    same(scores.isnan().sum(1), torch.tensor([0, 1, 0]))


@check("sigmoid_panel")
def sigmoids_past_two_to_the_31(run: Run) -> None:
    rows, loss, own = torch.randn(3, 40), poisoned(3), torch.arange(3) + 20
    scores = far(rows)
    with run():
        cuda.sigmoid(Panel(scores, scores, 20, torch.tensor(1.0), factor=FACTOR), torch.tensor(0.5), 0, loss)
    losses, slopes = sigmoid_truth(rows, 1.0, 0.5, own, None)
    close(loss, losses.sum(1), 1e-5)
    close(scores, slopes, 2e-5, 1e-7)


@check("column_sums_panel", shape=NOTHING)
def column_sums_of_nothing(run: Run, shape: tuple[int, int]) -> None:
    maximum, total = torch.randn(2, shape[1])
    before = maximum.clone(), total.clone()
    with run():
        cuda.column_sums(no_panel(*shape), maximum, total)
    same(maximum, before[0])
    same(total, before[1])


@check("clip_panel", "sigmoid_panel")
def no_rows(run: Run) -> None:
    none, of_columns = torch.empty(0), torch.zeros(40)
    with run():
        cuda.clip(no_panel(0, 40), none, none, of_columns, of_columns)
        cuda.sigmoid(no_panel(0, 40), torch.zeros(()), 0, none)
