"""Losses on distances with margins: triplets mined of each row, contrastive pairs.

Rows hold -1 and 1 or -2 and 2, so that products and squares are exact and ties are ties in float64 too. All is float32: rows
of half precision are widened before they are multiplied.
"""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned, virtual
from thawkit.ops.pairwise.reference import margin as definition

_CLOSE = 2e-6
_FEATURES = 16  # so that cosines are exact, too


def _signs(rows: int, seed: int) -> Tensor:
    """Rows of two lengths."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (rows, _FEATURES), generator=generator) * 2.0 - 1
    return signs * (1 + torch.arange(rows)[:, None] % 3 // 2)


class Case(NamedTuple):
    """Some rows against all columns as kernels have them, and as the definition has them."""

    scores: Tensor
    rows: Any
    order: Tensor  # of the columns
    d: Tensor  # float64, columns in the order of their numbers
    positive: Tensor
    negative: Tensor
    first: int


def _truth(x: Tensor, y: Tensor, cosine: bool) -> Tensor:
    x, y = x.double(), y.double()
    if cosine:
        return 1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).t()
    d = (x[:, None] - y).square().sum(2).sqrt()
    far = x.isfinite().all(1)[:, None] & y.isinf().any(1)
    return d.masked_fill(far, math.inf).masked_fill(~x.isfinite().all(1)[:, None], math.nan)


def case_of(
    kernels: ModuleType, rows: int, columns: int, classes: int = 3, cosine: bool = False, first: int | None = None,
    length: float = 1.0, spoilt: dict[int, float] | None = None, nearer: float = 0.0, gap: int = 4,
) -> Case:  # fmt: skip
    """Rows from ``first`` on of the columns themselves, by class, or others where it is None."""
    generator = torch.Generator().manual_seed(rows + columns)
    y, labels = _signs(columns, 1) * length, torch.randint(0, classes, (columns,), generator=generator)
    for column, value in (spoilt or {}).items():
        y[column, 2] = value
    order = labels.sort(stable=True).indices
    if first is None:
        x, row_labels = _signs(rows, 2) * length, torch.randint(0, classes, (rows,), generator=generator)
        itself = torch.zeros(rows, columns, dtype=torch.bool)
    else:
        here = order[first : first + rows]
        x, row_labels, itself = y[here], labels[here], here[:, None] == torch.arange(columns)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(columns))
    u, v = (F.normalize(z, dim=1) if cosine else z for z in (x, y[order]))
    scores = poisoned(rows, columns + gap)[:, :columns]
    scores.copy_(u @ v.t() + nearer)
    begins, ends = (torch.searchsorted(labels[order], row_labels, right=right) for right in (False, True))
    norms = (poisoned(rows), poisoned(columns)) if cosine else (u.square().sum(1), v.square().sum(1))
    known = kernels.Rows(
        *norms, *(t.to(torch.int32) for t in (begins, ends, order, places)), first is not None, cosine
    )
    same = row_labels[:, None] == labels
    return Case(scores, known, order, _truth(x, y, cosine) - nearer, same & ~itself, ~same, first or 0)


def _panel(kernels: ModuleType, case: Case, slopes: Tensor | None, weight: Tensor | None) -> Any:
    return kernels.Panel(case.scores, slopes, case.first, torch.ones(()), weight, 2.0)


def _factor(rows: int, weight: Tensor | None) -> Tensor:
    return torch.full((rows,), 2.0).double() * (1.0 if weight is None else weight.double())


def _weights(slopes: Tensor, case: Case) -> Tensor:
    """Slopes as kernels have them: by half the square, in the order of the classes."""
    w = slopes if case.rows.cosine else (slopes / case.d).masked_fill(case.d == 0, 0)
    return w[:, case.order]


def mined(kind: str, case: Case, margin: float, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the rows, how many of their triplets cost something, and the weights of the weighted rows."""
    d = case.d.clone().requires_grad_()
    mine = {
        "all": definition._all_triplets,
        "hard": definition._hardest_triplets,
        "semihard": definition._semihard_triplets,
    }[kind]
    in_single = torch.tensor(margin).double()
    losses, _, active = mine(d, case.positive, case.negative, in_single)
    (slopes,) = torch.autograd.grad((losses * _factor(len(d), weight)).sum(), d)
    return losses.detach(), active, _weights(slopes, case)


def paired(
    case: Case, margins: tuple[float, float], weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of the rows, how far distances exceed the two margins, and the weights of weighted columns."""
    rows, columns = case.d.shape
    d = case.d.clone().requires_grad_()
    inner, outer = (torch.tensor(m).double() for m in margins)
    gaps = [F.relu(d - inner).where(case.positive, 0.0), F.relu(outer - d).where(case.negative, 0.0)]
    losses = sum(gap.square() for gap in gaps)
    # both rows of a pair count half of it
    places = torch.empty_like(case.order).scatter_(0, case.order, torch.arange(columns))
    mine = None if weight is None else weight[case.first : case.first + rows]
    both = _factor(rows, mine)[:, None] + _factor(columns, weight)[places]
    (slopes,) = torch.autograd.grad((losses * both / 2).sum(), d)
    of_rows = losses.sum(1) / 2, *(gap.sum(1) for gap in gaps)
    return *(x.detach() for x in of_rows), _weights(slopes, case)


def _triplets(
    kernels: ModuleType, kind: str, rows: int, columns: int, margin: float = 0.21, weighted: bool = False, **of_case: Any
) -> list[Comparison]:  # fmt: skip
    """Every output, and once more the forward pass alone."""
    case = case_of(kernels, rows, columns, **of_case)
    weight = torch.linspace(0.5, 1.5, rows) if weighted else None
    losses, active, weights = mined(kind, case, margin, weight)

    alone, loss, total = (poisoned(rows) for _ in range(3))
    counts = [poisoned(rows, dtype=torch.int64) for _ in range(2)]
    of_margin, slopes = torch.tensor(margin), poisoned(rows, columns + 8)[:, :columns]
    compared = []
    if kind == "hard":
        chosen, two = poisoned(rows, 2, dtype=torch.int64), poisoned(rows, 2)
        kernels.hardest_triplet(_panel(kernels, case, None, weight), case.rows, of_margin, alone, counts[0])
        kernels.hardest_triplet(
            _panel(kernels, case, slopes, weight), case.rows, of_margin, loss, counts[1], chosen, two
        )
        compared.append(
            Comparison("weights", torch.zeros(rows, columns).scatter_add_(1, chosen, two), weights, _CLOSE)
        )
    else:
        kernel = kernels.all_triplets if kind == "all" else kernels.semihard_triplets
        distances = poisoned(rows, columns + 4)[:, :columns]
        kernels.distances(_panel(kernels, case, None, None), case.rows, distances)
        if kind == "semihard":
            slopes.zero_()
        for panel, out, count in (
            (_panel(kernels, case, None, weight), alone, counts[0]),
            (_panel(kernels, case, slopes, weight), loss, counts[1]),
        ):
            kernel(panel, case.rows, distances, of_margin, out, count, total)
        compared.append(Comparison("weights", slopes, weights, _CLOSE))
        compared.append(Comparison("their sums", total, weights.sum(1), 1e-5))
        compared.append(Comparison("distances", distances, case.d[:, case.order], 1e-6))
    return [
        Comparison("losses", loss, losses, 1e-5),
        Comparison("losses alone", alone, losses, 1e-5),
        *(Comparison("active", count, active, 0.0) for count in counts),
        *compared,
    ]


def _pairs(
    kernels: ModuleType, rows: int, columns: int, margins: tuple[float, float] = (1.1, 5.3), weighted: bool = False,
    first: int = 0, **of_case: Any,
) -> list[Comparison]:  # fmt: skip
    case = case_of(kernels, rows, columns, first=first, **of_case)
    weight = torch.linspace(0.0, 1.5, columns) if weighted else None  # in the order of the classes
    here = slice(first, first + rows)
    mine = None if weight is None else weight[here]
    of_margins = [torch.tensor(m) for m in margins]
    *truth, weights = paired(case, margins, weight)

    alone, loss, within, between, total = (poisoned(rows) for _ in range(5))
    kernels.contrastive_pairs(
        _panel(kernels, case, None, mine), case.rows, *of_margins, weight, alone, within, between, total
    )
    slopes = case.scores  # over which they may go
    kernels.contrastive_pairs(
        _panel(kernels, case, slopes, mine), case.rows, *of_margins, weight, loss, within, between, total
    )
    return [
        *(
            Comparison(*c, 1e-5)
            for c in zip(("losses", "within", "between"), (loss, within, between), truth, strict=True)
        ),
        Comparison("losses alone", alone, truth[0], 1e-5),
        Comparison("weights", slopes, weights, _CLOSE),
        Comparison("their sums", total, weights.sum(1), 1e-5),
    ]


def _special(kernels: ModuleType, kind: str, value: float) -> list[Comparison]:
    """Losses where a column is not finite; slopes of it are put right where all rows are known."""
    options = {"spoilt": {4: value}, "classes": 3}
    if kind == "contrastive":
        return [c for c in _pairs(kernels, 30, 30, **options) if "loss" in c.name]
    return [c for c in _triplets(kernels, kind, 9, 30, **options) if "loss" in c.name]


def _special_distances(kernels: ModuleType, value: float) -> list[Comparison]:
    case, out = case_of(kernels, 30, 30, first=0, spoilt={4: value}), poisoned(30, 30)
    kernels.distances(_panel(kernels, case, None, None), case.rows, out)
    return [Comparison("distances", out, case.d[:, case.order], 1e-6)]


def _far(kernels: ModuleType, kind: str) -> list[Comparison]:
    rows, columns = 33, 17
    case = case_of(kernels, rows, columns, gap=0)
    far, w, distances = (virtual(rows, columns, 1 << 26, torch.float32) for _ in range(3))
    far.copy_(case.scores)
    case = case._replace(scores=far)
    d = case.d.clone().requires_grad_()
    of_margin, last = torch.tensor(0.21), rows - 1
    loss, total, count = poisoned(rows), poisoned(rows), poisoned(rows, dtype=torch.int64)
    panel = _panel(kernels, case, w, None)
    if kind == "contrastive":
        known = case.rows
        case = case._replace(
            rows=type(known)(
                *(getattr(known, n) for n in ("norms", "column_norms", "first", "last", "number", "place")),
                False,
                False,
            )
        )
        kernels.contrastive_pairs(
            panel, case.rows, of_margin, torch.tensor(5.3), None, loss, poisoned(rows), poisoned(rows), total
        )
        truth = F.relu(d - float(of_margin)).where(case.positive, F.relu(5.3 - d)).square()
        return [Comparison("the last loss", loss[last:], truth.detach()[last:].sum(1) / 2, 1e-5)]
    losses, _, weights = mined(kind, case, 0.21, None)
    if kind == "hard":
        kernels.hardest_triplet(panel, case.rows, of_margin, loss, count)
        return [Comparison("the last loss", loss[last:], losses[last:], 1e-5)]
    kernels.distances(panel, case.rows, distances)
    for row in (0, last):
        distances[row].copy_(case.d[row, case.order])
        w[row].zero_()
    (kernels.all_triplets if kind == "all" else kernels.semihard_triplets)(
        panel, case.rows, distances, of_margin, loss, count, total
    )
    return [
        Comparison("the last loss", loss[last:], losses[last:], 1e-5),
        Comparison("the last weights", w[last], weights[last], 1e-5),
    ]


def _far_distances(kernels: ModuleType) -> list[Comparison]:
    case = case_of(kernels, 33, 17, gap=0)
    far, out = (virtual(33, 17, 1 << 26, torch.float32) for _ in range(2))
    far.copy_(case.scores)
    kernels.distances(_panel(kernels, case._replace(scores=far), None, None), case.rows, out)
    return [Comparison("the last distances", out[32], case.d[32, case.order], 1e-6)]


def _configuration(
    kernels: ModuleType, columns: int, itself: bool = False, cosine: bool = False, weighted: bool = False, slopes: bool = True
) -> None:  # fmt: skip
    rows, whole = 64, torch.int32
    scores, w, of_row, of_column = (
        torch.empty(rows, columns),
        torch.empty(rows, columns),
        torch.empty(rows),
        torch.empty(columns),
    )
    known = kernels.Rows(
        of_row, of_column, torch.empty(rows, dtype=whole), torch.empty(rows, dtype=whole), torch.empty(columns, dtype=whole),
        torch.empty(columns, dtype=whole), itself, cosine,
    )  # fmt: skip
    panel = kernels.Panel(scores, w if slopes else None, 0, torch.ones(()), of_row if weighted else None)
    margin, count = torch.ones(()), torch.empty(rows, dtype=torch.int64)
    kernels.distances(panel, known, scores)
    kernels.all_triplets(panel, known, scores, margin, of_row, count, of_row)
    kernels.semihard_triplets(panel, known, scores, margin, of_row, count, of_row)
    two = (torch.empty(rows, 2, dtype=torch.int64), torch.empty(rows, 2)) if slopes else ()
    kernels.hardest_triplet(panel, known, margin, of_row, count, *two)
    if itself:
        kernels.contrastive_pairs(
            panel, known, margin, margin, of_column if weighted else None, of_row, of_row, of_row, of_row
        )


_MUTANTS = {
    "all: rounding leaves a distance": Mutant("tl.where(squares <= nothing, 0.0, tl.sqrt_rn(squares))", "tl.sqrt_rn(tl.maximum(squares, 0.0) + nothing)"),
    "special: infinity is at no distance": Mutant('tl.where(other - own == float("inf"), float("inf"), d)', "d"),
    "special: an infinite row is at a distance": Mutant(" + (own - own)", ""),
    "all: a weight at distance 0": Mutant("tl.where(d == 0.0, 0.0, slope / d)", "slope / d"),
    "all: the own row counts": Mutant("positive = (p < last) & (p != own)", "positive = p < last"),
    "all: positives past the class": Mutant("positive = (p < last) & (p != own)", "positive = p != own"),
    "all: nearer or equal": Mutant("nearer += (d_n[None, :] < reach[:, None])", "nearer += (d_n[None, :] <= reach[:, None])"),
    "all: no margin for negatives": Mutant('reach = tl.where(positive, d_p + margin, -float("inf"))', 'reach = tl.where(positive, d_p, -float("inf"))', occurrence=1),
    "all: the loss lacks the margin": Mutant("loss + active.to(tl.float32) * margin", "loss"),
    "all: own weights are not written": Mutant(" | (column == own)", ""),
    "all: columns past the last": Mutant('d_n = tl.load(distances + column, mask=column < columns, other=float("inf"))', "d_n = tl.load(distances + column)"),
    "all: the sum of positives alone": Mutant("total += tl.sum(w, 0)", "total += 0.0", occurrence=1),
    "all, weighted: not": Mutant("weight *= tl.load(RowWeight + here)", "weight *= 1.0"),
    "all: no factor": Mutant("tl.full([], 1.0, tl.float32) * factor", "tl.full([], 1.0, tl.float32)"),
    "all: int32 rows": Mutant("distances = D + here.to(tl.int64) * d_stride", "distances = D + here * d_stride"),
    "all: the stride of the weights": Mutant("weights = W + here.to(tl.int64) * w_stride", "weights = W + here.to(tl.int64) * d_stride"),
    "all: distances of another row": Mutant("own = tl.load(RowNorms + here)", "own = tl.load(RowNorms)"),
    "all: int32 rows of distances": Mutant("here = tl.program_id(0).to(tl.int64)", "here = tl.program_id(0)"),
    "hard: the last of equal positives": Mutant("far = _key(d, _behind(column))", "far = _key(d, column)"),
    "hard: the first column of equal negatives": Mutant("near = _key(d, tl.load(Number + column, mask=inside, other=0))", "near = _key(d, column)"),
    "hard: a number is taken for a column": Mutant("n = tl.load(Place + number, mask=found, other=0)", "n = number"),
    "hard: the nearest positive": Mutant("usable & of_class & (column != own)", "usable & (column != own)"),
    "hard: of one class something is mined": Mutant("mined = (positives > 0) & (last - first < columns)", "mined = positives > 0"),
    "hard: the sign of the negative's weight": Mutant("_weight(-weight, d_n, COSINE)", "_weight(weight, d_n, COSINE)"),
    "hard: weights though nothing is lost": Mutant("costs = mined & found & ~(cost <= 0.0)", "costs = mined & found"),
    "hard, cosine below 0: keys are in no order": Mutant("order = bits ^ ((bits >> 31) & 0x7FFFFFFF)", "order = bits"),
    "hard: int32 rows": Mutant("S + here.to(tl.int64) * s_stride + column", "S + here * s_stride + column"),
    "special hard: what is no number is forgotten": Mutant('tl.where(odd, float("nan"), cost)', "cost"),
    "all: the class's own are negatives": Mutant('d_n = tl.where((column < first) | (column >= last), d_n, float("inf"))', "d_n = d_n"),
    "semihard: as far counts as farther": Mutant("tl.full([BLOCK_P], 0x7FFFFFFF, tl.int32)", "tl.full([BLOCK_P], 0, tl.int32)"),
    "semihard: the nearest of all": Mutant("tl.where(key[None, :] > limit[:, None], key[None, :], _FARTHEST)", "key[None, :]"),
    "semihard: no farthest": Mutant("d_n = tl.where(none, d_far, d_near)", "d_n = d_near"),
    "semihard: the last of the farthest": Mutant("_key(d_n, _behind(number)), _NEAREST)", "_key(d_n, number), _NEAREST)"),
    "semihard: one of several weights": Mutant('tl.atomic_add(weights + n, w_n, mask=costs, sem="relaxed")', "tl.store(weights + n, w_n, mask=costs)"),
    "semihard: the own row counts": Mutant("positive = (p < last) & (p != own) & any_negative", "positive = (p < last) & any_negative"),
    "semihard: int32 rows of weights": Mutant("weights = W + here.to(tl.int64) * w_stride", "weights = W + here * w_stride", occurrence=1),
    "special semihard: the farthest is a number": Mutant('d_far = tl.where(odd, float("nan"), d_far)', "d_far = d_far"),
    "contrastive: the own row is a pair": Mutant("counts = inside & (column != own)", "counts = inside"),
    "contrastive: by the panel's row": Mutant("own = row + here\n    weight", "own = here\n    weight"),
    "contrastive: columns past the last": Mutant("counts = inside & (column != own)", "counts = column != own"),
    "contrastive: one half of a pair's weight": Mutant("of_both = weight + factor\n", "of_both = weight\n"),
    "contrastive, weighted: columns are not": Mutant("weight + factor * tl.load(ColumnWeight + column, mask=inside, other=0.0)", "weight + factor"),
    "contrastive: the sign of negatives": Mutant("tl.where(of_class, gap, -gap) * of_both", "gap * of_both"),
    "contrastive: the whole of a pair": Mutant("tl.store(Loss + here, 0.5 * loss)", "tl.store(Loss + here, loss)"),
    "contrastive: one margin": Mutant("negative_margin - d)", "margin - d)"),
    "special contrastive: no number is no gap": Mutant("counts & ~(gap <= 0.0)", "counts & (gap > 0.0)"),
    "contrastive: too few programs": Mutant("_contrastive_pairs[(s.shape[0],)]", "_contrastive_pairs[(max(1, s.shape[0] - 1),)]"),
}  # fmt: skip

_SIZES = {
    "1x1": {"rows": 1, "columns": 1, "classes": 1},
    "5x7": {"rows": 5, "columns": 7, "classes": 2},
    "one class": {"rows": 3, "columns": 9, "classes": 1},
    "many positives": {"rows": 4, "columns": 70, "classes": 2},
    "3x1100": {"rows": 3, "columns": 1100, "classes": 40},
    "itself": {"rows": 11, "columns": 40, "classes": 4, "first": 6},
    "itself, wide margin": {"rows": 11, "columns": 40, "classes": 4, "first": 6, "margin": 5.0},
    "itself, one row": {"rows": 1, "columns": 1, "classes": 1, "first": 0},
    "cosine": {"rows": 6, "columns": 30, "classes": 3, "cosine": True},
    "cosine below 0": {"rows": 6, "columns": 30, "classes": 3, "cosine": True, "nearer": 3.0},
    "weighted": {"rows": 6, "columns": 30, "weighted": True},
}
_LENGTHS = {"long": 2.0**50, "short": 2.0**-50}

FAMILY = Family(
    name="margin losses",
    file="margin.py",
    problems={
        **{f"{kind}, {name}": partial(_triplets, kind=kind, **size) for kind in ("all", "hard", "semihard") for name, size in _SIZES.items()},
        **{
            f"{kind}, margin {margin}": partial(_triplets, kind=kind, rows=6, columns=30, margin=margin)
            for kind in ("all", "hard", "semihard") for margin in (-50.0, -0.3, 0.0, 50.0)
        },
        **{
            f"{kind}, {name} rows": partial(_triplets, kind=kind, rows=6, columns=30, margin=0.21 * length, length=length)
            for kind in ("all", "hard", "semihard") for name, length in _LENGTHS.items()
        },
        "contrastive, 1x1": partial(_pairs, rows=1, columns=1, classes=1),
        "contrastive, 7x7": partial(_pairs, rows=7, columns=7),
        "contrastive, second panel": partial(_pairs, rows=9, columns=40, first=21),
        "contrastive, margin below 0": partial(_pairs, rows=9, columns=40, first=21, margins=(-0.5, 5.3)),
        "contrastive, 3x1100": partial(_pairs, rows=3, columns=1100, first=500),
        "contrastive, cosine": partial(_pairs, rows=30, columns=30, cosine=True, margins=(0.3, 1.1)),
        "contrastive, weighted": partial(_pairs, rows=9, columns=30, weighted=True, first=3),
        **{
            f"contrastive, {name} rows": partial(_pairs, rows=30, columns=30, length=length, margins=(1.1 * length, 5.3 * length))
            for name, length in _LENGTHS.items()
        },
        **{f"special distances, {value}": partial(_special_distances, value=value) for value in (math.nan, math.inf)},
        **{
            f"special {kind}, {value}": partial(_special, kind=kind, value=value)
            for kind in ("all", "hard", "semihard", "contrastive") for value in (math.nan, math.inf)
        },
    },
    configurations={
        "1024 columns": partial(_configuration, columns=1024, itself=True),
        "65536 columns": partial(_configuration, columns=65536, itself=True),
        "65536 other columns, cosine, weighted": partial(_configuration, columns=65536, cosine=True, weighted=True),
        "4096 columns, weighted": partial(_configuration, columns=4096, itself=True, weighted=True),
        "4096 columns, no slopes": partial(_configuration, columns=4096, itself=True, slopes=False),
    },
    mutants=_MUTANTS,
    huge={
        **{f"{kind}: rows 2^26 elements apart": partial(_far, kind=kind) for kind in ("all", "hard", "semihard", "contrastive")},
        "all: distances 2^26 elements apart": _far_distances,
    },
)  # fmt: skip
