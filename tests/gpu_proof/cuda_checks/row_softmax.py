"""csrc/cuda/row_softmax.cu: softmax cross-entropies of a panel's rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from thawkit.kernels.panel import Panel
from torch import Tensor

from thawkit.ops.pairwise import cuda

from .panels import FACTOR, LAYOUTS, allowed, far, no_panel, panel, problems, solve, untouched
from .registry import DTYPES, Run, check, close, poisoned, same


class Truth(NamedTuple):
    """What is to be known of rows, in float64."""

    loss: Tensor
    log_sum: Tensor
    positive: Tensor
    maximum: Tensor
    slopes: Tensor
    dscale: Tensor
    missing: Tensor


def truth(
    scores: Tensor,
    scale: float,
    own: Tensor,
    counts: Tensor | None = None,
    margin: float = math.inf,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
) -> Truth:
    """``counts`` says which columns count, besides the own ones, which always do; own below 0: none."""
    raw = scores.double()
    logits = scale * raw + (0 if bias is None else bias.double())
    paired = own >= 0
    mine = torch.zeros_like(raw, dtype=torch.bool)
    mine[paired, own[paired]] = True
    counts = ~mine if counts is None else counts & ~mine
    own_raw = raw.where(mine, 0).sum(1)
    nearby = counts & ~(paired[:, None] & (raw > own_raw[:, None] + margin))
    positive = logits.where(mine, 0).sum(1).where(paired, math.nan)
    others = logits.masked_fill(~nearby, -math.inf).logsumexp(1)
    log_sum = torch.where(paired, torch.logaddexp(others, positive), others)
    share = (logits - log_sum[:, None]).exp().where(nearby, 0)
    missing = (others - log_sum).exp()
    weights = FACTOR * (torch.ones(len(raw)) if weight is None else weight).double()[:, None]
    slopes = weights * torch.where(mine, -missing[:, None], share)
    return Truth(
        torch.where(paired, torch.nn.functional.softplus(others - positive), others),
        log_sum,
        positive,
        logits.masked_fill(~(counts | mine), -math.inf).amax(1),
        slopes,
        (slopes * (raw - own_raw[:, None])).where(slopes != 0, 0).sum(1),
        missing,
    )


STATISTICS = "log_sum", "missing", "positive", "maximum", "dscale"


def outputs(rows: int) -> dict[str, Tensor]:
    return {name: poisoned(rows) for name in ("loss", *STATISTICS)}


def compare(out: dict[str, Tensor], true: Truth, scale: float, paired: Tensor) -> None:
    size = 2e-6 * (1 + abs(scale))
    close(out["loss"], true.loss, 2e-6, size)
    close(out["log_sum"], true.log_sum, 2e-6, size)
    close(out["missing"][paired], true.missing[paired], 4 * size, 1e-30)
    close(out["positive"], true.positive, 1e-6, 1e-6)
    close(out["maximum"], true.maximum, 1e-6, 1e-6)
    close(out["dscale"], true.dscale, 1e-5 * (1 + abs(scale)), 2e-6 * (1 + abs(scale)))


def problems_of_triton(run: Run, problem: str, dtype: torch.dtype) -> None:
    solve(run, problem)


for _dtype in DTYPES:
    check("softmax_panel", problem=problems("softmax", _dtype), dtype=[_dtype])(problems_of_triton)


def options_of(kind: str, rows: int, columns: int) -> tuple[dict[str, Any], Tensor, dict[str, Any]]:
    """Options of a call whose first row is number 2, the own columns, and what the truth takes besides."""
    number = torch.arange(rows) + 2
    if kind == "plain":
        own = torch.arange(rows) % columns
        return {"target": own}, own, {}
    labels, of_rows = torch.arange(columns, dtype=torch.int32) % 3, torch.arange(rows, dtype=torch.int32)
    same_label = labels == of_rows[:, None]
    column = torch.arange(columns)
    if kind == "a margin":
        offset = 1 - rows - 2  # the last row's positive is column 0, those of the others are none
        own = number + offset
        options = {"offset": offset, "margin": 0.3, "labels": 2}
        extra: dict[str, Any] = {"counts": same_label, "margin": 0.3}
    else:
        own = torch.tensor([columns - 1, -1, 0][:rows])
        bias = torch.randn(columns)
        options = {"target": own, "bias": bias, "labels": 1, "excluded": 1}
        extra = {"counts": ~same_label & (column != number[:, None] + 1), "bias": bias}
    return options | {"row_labels": of_rows, "key_labels": labels}, own, extra


@check("softmax_panel", layout=LAYOUTS, dtype=DTYPES, kind=["plain", "a margin", "a bias"])
def values(run: Run, layout: tuple, dtype: torch.dtype, kind: str) -> None:
    rows, columns, *_ = layout
    scores, scale = torch.randn(rows, columns), 3.0 if kind == "plain" else -1.5
    weight = torch.tensor([1.5, -0.5, 0.0][:rows]) if kind == "a bias" else None
    options, own, extra = options_of(kind, rows, columns)
    true = truth(scores, scale, own, weight=weight, **extra)
    given, memory = panel(scores, dtype, layout, scale, 2, row_weight=weight)
    out = outputs(rows)
    with run(seed=columns):
        cuda.softmax(given, **options, **out)
    compare(out, true, scale, own >= 0)
    assert given.slopes is not None
    close(given.slopes, true.slopes, allowed(dtype, scale), 1e-7)
    for room in memory:
        untouched(room, layout)


@check("softmax_panel", name=["scores", "slopes", "bias", "key_labels"], dtype=DTYPES)
def memory_that_no_vector_begins(run: Run, name: str, dtype: torch.dtype) -> None:
    """One begins where no vector does, and the others where one does."""
    rows, columns = 2, 1028
    moved = lambda which: (rows, columns, 0, int(which == name))
    scores, bias = torch.randn(rows, columns), torch.randn(columns)
    labels = torch.arange(columns, dtype=torch.int32) % 3
    shifted = lambda x, which: torch.cat([x[:1], x])[1:] if which == name else x
    given, _ = panel(scores, torch.float32, moved("scores"), 1.0, 0)
    apart, _ = panel(scores, dtype, moved("slopes"), 1.0, 0)
    slopes = apart.slopes
    assert slopes is not None
    out, own = outputs(rows), torch.tensor([5, 1027])
    with run():
        cuda.softmax(
            Panel(given.scores, slopes, 0, given.scale, factor=FACTOR), target=own,
            bias=shifted(bias, "bias"), row_labels=labels[:rows].clone(),
            key_labels=shifted(labels, "key_labels"), labels=1, **out,
        )  # fmt: skip
    true = truth(scores, 1.0, own, labels != labels[:rows, None], bias=bias)
    compare(out, true, 1.0, own >= 0)
    close(slopes, true.slopes, allowed(dtype, 1.0), 1e-7)


@check("softmax_panel")
def nothing_but_what_was_asked_for(run: Run) -> None:
    scores = torch.randn(3, 40)
    true, given = truth(scores, 2.0, torch.arange(3)), scores.clone()
    loss, dscale = poisoned(3), poisoned(3)
    with run():
        cuda.softmax(Panel(given, None, 0, torch.tensor(2.0)), loss)
    close(loss, true.loss, 2e-6, 4e-6)
    with run():
        cuda.softmax(Panel(given, None, 0, torch.tensor(2.0), factor=FACTOR), loss, dscale=dscale)
    same(given, scores)
    close(dscale, true.dscale, 1e-5, 1e-6)
    with run():
        cuda.softmax(Panel(given, given, 0, torch.tensor(2.0), factor=FACTOR), loss)
    close(given, true.slopes, 2e-5, 1e-7)


@check("softmax_panel")
def a_positive_far_above_the_rest(run: Run) -> None:
    """Its slope and its loss, which are tiny, keep their digits."""
    scores, own = torch.randn(4, 300), torch.arange(4)
    scores[own, own] = torch.tensor([20.0, 40.0, 80.0, 300.0])
    true, given, out = truth(scores, 1.0, own), scores.clone(), outputs(4)
    with run():
        cuda.softmax(Panel(given, given, 0, torch.tensor(1.0), factor=FACTOR), **out)
    close(out["loss"][:2], true.loss[:2], 3e-5)
    close(out["loss"][2:], torch.zeros(2), 0, 1e-25)
    close(given.diagonal()[:2], true.slopes.diagonal()[:2], 3e-5)
    close(out["missing"][:2], true.missing[:2], 3e-5)
    close(out["dscale"][:2], true.dscale[:2], 1e-4, 1e-12)


@check("softmax_panel", scale=[300.0, -300.0])
def scores_that_overflow_alone(run: Run, scale: float) -> None:
    scores, own = torch.randn(3, 70) * 10, torch.arange(3) + 5
    true, given, out = truth(scores, scale, own), scores.clone(), outputs(3)
    with run():
        cuda.softmax(Panel(given, given, 5, torch.tensor(scale), factor=FACTOR), **out)
    close(out["loss"], true.loss, 1e-5)
    close(given, true.slopes, 3e-3, 1e-6)


@check("softmax_panel", at=[0, 31, 255, 256, 299], weight=[1.0, 0.0])
def nan_spoils_its_row_alone(run: Run, at: int, weight: float) -> None:
    """And where the row weighs nothing, its loss alone."""
    scores, out = torch.randn(3, 300), outputs(3)
    scores[1, at] = math.nan
    weights = torch.tensor([1.0, weight, 1.0])
    with run():
        cuda.softmax(Panel(scores, scores, 2, torch.tensor(1.0), weights), **out)
    same(out["loss"].isnan(), torch.tensor([False, True, False]))
    assert scores[[0, 2]].isfinite().all()
    assert scores[1].isnan().all() if weight else (scores[1] == 0).all()
    assert out["dscale"][1].isnan() if weight else out["dscale"][1] == 0


@check("softmax_panel")
def columns_that_do_not_count(run: Run) -> None:
    scores, own, out = torch.randn(2, 300), torch.arange(2) + 1, outputs(2)
    scores[:, 50:290] = -math.inf
    kept = torch.cat([scores[:, :50], scores[:, 290:]], 1)
    true, given = truth(kept, 2.0, own), scores.clone()
    with run():
        cuda.softmax(Panel(given, given, 1, torch.tensor(2.0), factor=FACTOR), **out)
    compare(out, true, 2.0, own >= 0)
    close(torch.cat([given[:, :50], given[:, 290:]], 1), true.slopes, 1e-5, 1e-7)
    assert (given[:, 50:290] == 0).all()


@check("softmax_panel")
def no_column_counts(run: Run) -> None:
    """A row's log-sum-exp is then -inf and its slopes are 0; a positive alone costs nothing."""
    labels, scores, out = torch.zeros(9, dtype=torch.int32), torch.randn(2, 9), outputs(2)
    with run():
        cuda.softmax(
            Panel(scores, scores, 0, torch.tensor(1.0)), target=torch.tensor([-1, 3]),
            row_labels=labels[:2].clone(), key_labels=labels, labels=1, **out,
        )  # fmt: skip
    same(out["loss"], torch.tensor([-math.inf, 0.0]))
    assert (scores == 0).all()
    same(out["dscale"], torch.zeros(2))


@check("softmax_panel", target=[40, 2**31, 2**40])
def targets_that_are_no_columns(run: Run, target: int) -> None:
    scores, out = torch.randn(2, 40), outputs(2)
    with run():
        part = Panel(scores, scores, 0, torch.tensor(1.0))
        cuda.softmax(part, target=torch.tensor([target, 1]), bias=torch.randn(40), **out)
    same(out["loss"].isnan(), torch.tensor([True, False]))


@check("softmax_panel", slopes=["scores", "elsewhere"])
def past_two_to_the_31(run: Run, slopes: str) -> None:
    rows, own, out = torch.randn(3, 40), torch.arange(3) + 20, outputs(3)
    scores = far(rows)
    written = scores if slopes == "scores" else far(torch.zeros(3, 40))
    true = truth(rows, 2.0, own)
    with run():
        cuda.softmax(Panel(scores, written, 20, torch.tensor(2.0), factor=FACTOR), **out)
    compare(out, true, 2.0, own >= 0)
    close(written, true.slopes, 1e-5, 1e-7)


@check("softmax_panel")
def no_rows(run: Run) -> None:
    with run():
        cuda.softmax(no_panel(0, 40), torch.empty(0))
