"""The epilogues on panels of products: softmax cross-entropies of rows, CLIP, SigLIP."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned, virtual
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.row_softmax import LABELS, Columns

_SLOPES = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_SUMS = 1e-5


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _scores(rows: int, columns: int, gap: int = 3) -> Tensor:
    """Products whose rows lie apart in memory; what is between them is not a number."""
    scores = poisoned(rows, columns + gap)[:, :columns]
    return scores.copy_(_random(rows, columns))


def _panel(
    kernels: ModuleType, scores: Tensor, scale: float, dtype: torch.dtype, weight: Tensor | None, first: int
) -> Any:
    slopes = scores if dtype == torch.float32 else poisoned(*scores.shape, dtype=dtype)
    return kernels.Panel(scores, slopes, first, torch.tensor(scale), weight, 2.0)


def _softmax(
    kernels: ModuleType, rows: int, columns: int, scale: float = 3.0, dtype: torch.dtype = torch.float32,
    first: int = 0, weighted: bool = False, targets: str = "", biased: bool = False, raised: float = 0.0,
    lowered: float = 0.0, keep: Columns = Columns(),
) -> list[Comparison]:  # fmt: skip
    """Every output, and once more the forward pass alone; slopes go over the scores where they may."""
    scores = _scores(rows, columns).sub_(lowered)
    own = torch.arange(rows) + first + keep.offset
    target = None
    if targets:
        own = torch.randint(columns, (rows,), generator=torch.Generator().manual_seed(2))
        target = own.where(torch.arange(rows) % 3 != 0, -1) if targets == "some" else own
        own = target
    scores[torch.arange(rows), own.clamp_min(0)] += raised
    weight = torch.linspace(0.0, 1.5, rows) if weighted else None
    bias = _random(columns, seed=3) if biased else None
    row_labels, key_labels = (torch.arange(n, dtype=torch.int32) % 4 for n in (rows, columns))
    options: dict[str, Any] = {
        "target": target, "offset": keep.offset, "bias": bias, "labels": LABELS.index(keep.labels),
        "excluded": -1 if keep.excluded is None else keep.excluded, "margin": keep.margin,
        "row_labels": row_labels, "key_labels": key_labels,
    }  # fmt: skip

    # the definition multiplies: the products with the identity are the scores
    wide, number = (
        scores.double().requires_grad_(),
        torch.tensor(scale, dtype=torch.float64, requires_grad=True),
    )
    shifted = torch.cat([wide.new_zeros(first, columns), wide]) if first else wide
    truths = reference.row_softmax(
        shifted, torch.eye(columns, dtype=torch.float64), number,
        None if target is None else target, None if bias is None else bias.double(), row_labels, key_labels,
        keep, False,
    )  # fmt: skip
    losses, positive, maximum = (x[first:] for x in truths)
    factor = torch.full((rows,), 2.0).double() * (1.0 if weight is None else weight.double())
    used = losses.where(factor != 0, 0.0).where(losses.isfinite(), 0.0)
    slopes, _ = torch.autograd.grad((used * factor).sum(), (wide, number), retain_graph=True)
    dscale = (slopes / scale * wide).sum(1).detach()

    alone = poisoned(rows)
    kernels.softmax(kernels.Panel(scores, None, first, torch.tensor(scale)), alone, **options)
    panel = _panel(kernels, scores, scale, dtype, weight, first)
    out = {n: poisoned(rows) for n in ("log_sum", "missing", "positive", "maximum", "dscale")}
    loss = poisoned(rows)
    kernels.softmax(panel, loss, **options, **out)
    losses, maximum = losses.detach(), maximum.detach()
    paired = own >= 0
    log_sum = (losses + positive.detach()).where(paired, losses)
    tolerance = max(_SLOPES[dtype], 2e-7 * abs(scale) * (1 + lowered))
    sums = max(_SUMS, 2e-6 * abs(scale))
    compared = [
        Comparison("losses", loss, losses, sums),
        Comparison("losses alone", alone, losses, sums),
        Comparison("log_sum", out["log_sum"], log_sum, _SUMS),
        Comparison("missing", out["missing"][paired], -torch.expm1(-losses[paired]), sums),
        Comparison("positive", out["positive"], positive.detach(), 1e-6),
        Comparison("maximum", out["maximum"], maximum, 1e-6),
        Comparison("slopes", panel.slopes, slopes / scale, tolerance),
        Comparison("dscale", out["dscale"], dscale, max(sums, 1e-4)),
    ]
    return compared


def _sure(kernels: ModuleType) -> list[Comparison]:
    """Positives near probability 1: each row by itself, for its loss is far below the others'."""
    compared = []
    for raised in (8.0, 14.0, 18.0):
        compared += _softmax(kernels, 1, 6, 1.0, raised=raised)
    return compared


def _unknown_target(kernels: ModuleType) -> list[Comparison]:
    scores, loss = _scores(4, 5, gap=0), poisoned(4)  # past a row's end is a number
    target = torch.tensor([70, 1, 2**32 + 1, 1 - 2**32])  # the last names none, as -1 does
    kernels.softmax(kernels.Panel(scores, None, 0, torch.tensor(1.0)), loss, target=target)
    exact = scores.double()
    known, none = -exact[1].log_softmax(0)[1], exact[3].logsumexp(0)
    truth = torch.stack([torch.tensor(math.nan), known.float(), torch.tensor(math.nan), none.float()])
    return [Comparison("losses", loss, truth, 1e-6)]


def _no_slopes_for_a_scale(kernels: ModuleType) -> list[Comparison]:
    """Where only the scale wants a gradient the panel is left as it was."""
    scores = _scores(4, 9)
    before, loss, dscale = scores.clone(), poisoned(4), poisoned(4)
    kernels.softmax(kernels.Panel(scores, None, 0, torch.tensor(3.0)), loss, dscale=dscale)
    p = (3.0 * before.double()).softmax(1) - torch.eye(4, 9, dtype=torch.float64)
    return [
        Comparison("scores", scores, before, 0.0),
        Comparison("dscale", dscale, (p * before).sum(1), 1e-5),
    ]


def _weighs_nothing(kernels: ModuleType, value: float, at: int) -> list[Comparison]:
    """A row of weight 0 has no gradient, even where exponentials of it are no numbers; others keep theirs."""
    scores, weight = _scores(3, 9), torch.tensor([1.0, 0.0, 0.5])
    wide = scores.double()
    scores[1, at] = value
    losses = (3.0 * wide).logsumexp(1) - 3.0 * wide.diagonal()
    slopes = 2.0 * weight[:, None] * ((3.0 * wide).softmax(1) - torch.eye(3, 9))
    loss, dscale, panel = poisoned(3), poisoned(3), _panel(kernels, scores, 3.0, torch.float32, weight, 0)
    kernels.softmax(panel, loss, dscale=dscale)
    return [
        Comparison("other losses", loss[::2], losses[::2], 1e-6),
        Comparison("slopes", panel.slopes, slopes, _SLOPES[torch.float32]),
        Comparison("dscale", dscale, (slopes * wide).sum(1), 1e-5),
    ]


def _clip(
    kernels: ModuleType, size: int, scale: float = 3.0, dtype: torch.dtype = torch.float32, heights: int = 1,
    weighted: bool = False, lowered: float = 0.0,
) -> list[Comparison]:  # fmt: skip
    scores = _scores(size, size).sub_(lowered)
    weight = torch.linspace(0.5, 1.5, size) if weighted else None
    wide = scores.double().requires_grad_()
    number = torch.tensor(scale, dtype=torch.float64)
    losses = reference.clip(wide, torch.eye(size, dtype=torch.float64), number, False)
    factor = torch.full((size,), 2.0).double() * (1.0 if weight is None else weight.double())
    slopes = torch.autograd.grad((losses * factor).sum(), wide)[0] / scale
    dscale = (slopes * wide).sum(1).detach()

    logits = scale * wide.detach()
    others = logits.clone().fill_diagonal_(-math.inf)
    of_rows, of_columns = (logits.logsumexp(d).float() for d in (1, 0))
    missing = [(others.logsumexp(d) - logits.logsumexp(d)).exp().float() for d in (1, 0)]
    largest, total = torch.full((size,), -math.inf), torch.zeros(size)
    got, compared = poisoned(size, size, dtype=dtype), []
    of_scale = poisoned(size)
    height = -(-size // heights)
    for first in range(0, size, height):
        here = slice(first, first + height)
        panel = _panel(kernels, scores[here], scale, dtype, None if weight is None else weight[here], first)
        kernels.column_sums(panel, largest, total)
        kernels.clip(panel, of_rows[here], missing[0][here], of_columns, missing[1], weight, of_scale[here])
        got[here] = panel.slopes
    compared.append(Comparison("column maxima", largest, others.amax(0), 1e-6))
    compared.append(
        Comparison(
            "column sums",
            total,
            (others - others.amax(0).clamp_min(-1e300)).exp().sum(0),
            2e-6 * max(1, scale),
        )
    )
    compared.append(Comparison("slopes", got, slopes, max(_SLOPES[dtype], 5e-7 * scale * (1 + lowered))))
    compared.append(Comparison("dscale", of_scale, dscale, 1e-4))
    return compared


def _sigmoid(
    kernels: ModuleType, rows: int, columns: int, scale: float = 3.0, dtype: torch.dtype = torch.float32,
    offset: int | None = 0, weighted: bool = False, first: int = 0,
) -> list[Comparison]:  # fmt: skip
    scores, bias = _scores(rows, columns), -2.0
    weight = torch.linspace(0.0, 1.5, rows) if weighted else None
    wide = scores.double().requires_grad_()
    signs = torch.full((rows, columns), -1.0, dtype=torch.float64)
    if offset is not None:
        signs.diagonal(offset + first).fill_(1.0)
    losses = -F.logsigmoid(signs * (scale * wide + bias)).sum(1)
    factor = torch.full((rows,), 2.0).double() * (1.0 if weight is None else weight.double())
    slopes = torch.autograd.grad((losses * factor).sum(), wide)[0] / scale
    loss, dscale, dbias = (poisoned(rows) for _ in range(3))
    truth = [losses.detach(), (slopes * wide).sum(1).detach(), slopes.sum(1)]
    panel = _panel(kernels, scores, scale, dtype, weight, first)
    kernels.sigmoid(panel, torch.tensor(bias), offset, loss, dscale, dbias)
    return [
        *(
            Comparison(*c, 1e-5)
            for c in zip(("loss", "dscale", "dbias"), (loss, dscale, dbias), truth, strict=True)
        ),
        Comparison("slopes", panel.slopes, slopes, _SLOPES[dtype]),
    ]


def _far(kernels: ModuleType, kind: str) -> list[Comparison]:
    rows, columns = 33, 17
    scores = virtual(rows, columns, 1 << 26, torch.float32)
    scores.copy_(_random(rows, columns))
    wide = scores.double()
    loss = poisoned(rows)
    panel = kernels.Panel(scores, scores, 0, torch.tensor(2.0))
    last = rows - 1
    if kind == "sigmoid":
        kernels.sigmoid(panel, torch.tensor(0.0), None, loss)
        slopes = torch.sigmoid(2.0 * wide)
    elif kind == "clip columns":
        largest, total = torch.full((columns,), -math.inf), torch.zeros(columns)
        kernels.column_sums(panel, largest, total)
        logits = (2.0 * wide).fill_diagonal_(-math.inf)
        return [Comparison("column maxima", largest, logits.amax(0), 1e-6)]
    else:
        kernels.softmax(panel, loss, target=torch.full((rows,), -1))
        slopes = (2.0 * wide).softmax(1)
    return [Comparison("the last slopes", scores[last], slopes[last], 1e-5)]


_COLUMNS = {
    "offset": Columns(offset=3),
    "excluded": Columns(offset=1, excluded=0),
    "same labels dropped": Columns(labels="drop same"),
    "same labels kept": Columns(labels="keep same"),
    "margin": Columns(margin=0.3),
    "margin and labels": Columns(margin=0.3, labels="drop same", excluded=2),
}


def _configuration(kernels: ModuleType, columns: int, dtype: torch.dtype, **options: Any) -> None:
    rows = 64
    scores, of_row = torch.empty(rows, columns), torch.empty(rows)
    slopes = torch.empty(rows, columns, dtype=dtype)
    weight = of_row if options.pop("weighted", False) else None
    panel = kernels.Panel(scores, slopes, 0, torch.empty(()), weight)
    outs = dict.fromkeys(options.pop("outs", ()), of_row)
    kernels.softmax(panel, of_row, **options, **outs)
    if not options:
        kernels.softmax(
            kernels.Panel(scores, None, 0, torch.empty(())), of_row, log_sum=of_row, missing=of_row
        )


def _pair_configuration(kernels: ModuleType, columns: int, dtype: torch.dtype, weighted: bool) -> None:
    rows = 64
    scores, of_row, of_column = torch.empty(rows, columns), torch.empty(rows), torch.empty(columns)
    slopes = torch.empty(rows, columns, dtype=dtype)
    panel = kernels.Panel(scores, slopes, 0, torch.empty(()), of_row if weighted else None)
    kernels.column_sums(panel, of_column, of_column)
    kernels.clip(panel, of_row, of_row, of_column, of_column, of_column if weighted else None, of_row)
    kernels.sigmoid(panel, torch.empty(()), 0, of_row, of_row, of_row)


_SHARED = "arithmetic.py"
_MUTANTS = {
    "softmax: columns past the last count": Mutant(
        "counts = (column < columns) & (column != own)", "counts = column != own"
    ),
    "softmax: the positive counts twice": Mutant(" & (column != own)", ""),
    "softmax, excluded: it counts": Mutant("counts = counts & (column != row + excluded)", "counts = counts"),
    "softmax, second: by the panel's row": Mutant(
        "raw, column, columns, row, own, own_score, KeyLabels",
        "raw, column, columns, here, own, own_score, KeyLabels",
        occurrence=2,
    ),
    "softmax, same: the wrong labels": Mutant(
        "counts & (label != row_label)", "counts & (label == row_label)"
    ),
    "softmax, margin: of the scaled scores": Mutant("own_score + margin)", "own_score * 3.0 + margin)"),
    "softmax, margin: in the maximum": Mutant("return counts, nearby", "return nearby, nearby"),
    "softmax: sums are not rescaled": Mutant(
        "total *= tl.exp(maximum - finite)", "total *= 1.0", file=_SHARED
    ),
    "softmax: int32 rows of scores": Mutant("here.to(tl.int64) * s_stride", "here * s_stride"),
    "softmax: the stride of the slopes": Mutant(
        "here.to(tl.int64) * w_stride + column, slopes", "here.to(tl.int64) * s_stride + column, slopes"
    ),
    "softmax: slopes past the last column": Mutant("slopes, mask=column < columns)", "slopes)"),
    "softmax, sure: the loss cancels": Mutant(
        "log1p(others), tl.log(both)", "tl.log(both), tl.log(both)", file=_SHARED
    ),
    "softmax, sure: the own slope cancels": Mutant(
        "-others * share", "share * tl.exp(positive - larger) - weight"
    ),
    "softmax, scale 100: the maximum is lost": Mutant(
        "tl.maximum(maximum, tl.max(logits, AXIS))", "tl.maximum(maximum, 0.0)", file=_SHARED
    ),
    "softmax, some: rows without a positive have one": Mutant(
        "tl.store(Loss + here, tl.where(paired, loss, log_sum))", "tl.store(Loss + here, loss)"
    ),
    "softmax, unknown: reads elsewhere": Mutant(
        'mask=paired & (own < columns), other=float("nan")', "mask=paired, other=0.0"
    ),
    "softmax, bias: not in the positive": Mutant(
        "positive += tl.load(Bias + own, mask=paired & (own < columns), other=0.0)", "positive += 0.0"
    ),
    "softmax, bias: not in the slopes": Mutant(
        "z += tl.load(Bias + column, mask=column < columns, other=0.0)", "z += 0.0", occurrence=1
    ),
    "softmax, weighted: not": Mutant("weight *= tl.load(RowWeight + here)", "weight *= 1.0"),
    "softmax, weight 0: its positive has a slope": Mutant(
        "tl.where(weight != 0.0, -others * share, 0.0)", "-others * share"
    ),
    "softmax, weight 0: its other columns have": Mutant(
        "slopes = tl.where(weight != 0.0, slopes, 0.0)", "slopes = slopes"
    ),
    "softmax, weight 0: 0 times infinity": Mutant(
        "tl.where(slopes == 0.0, 0.0, slopes * (raw - own_score))", "slopes * (raw - own_score)"
    ),
    "softmax: no factor": Mutant("tl.full([], 1.0, tl.float32) * factor", "tl.full([], 1.0, tl.float32)"),
    "softmax: dscale from the logits": Mutant("slopes * (raw - own_score)", "slopes * (z - own_score)"),
    "softmax: writes though nobody asked": Mutant("SLOPES=panel.slopes is not None", "SLOPES=True"),
    "clip: the diagonal is in the column sums": Mutant(
        "there & (first + row[:, None] != column[None, :])", "there"
    ),
    "clip: rows past the last count": Mutant(
        "there = (row[:, None] < rows) & inside[None, :]", "there = inside[None, :] & (row[:, None] >= 0)"
    ),
    "clip: the diagonal of another panel": Mutant("first + row[:, None] != column", "row[:, None] != column"),
    "clip: column sums are not rescaled": Mutant(
        "total *= tl.exp(maximum - finite)", "total *= 1.0", file=_SHARED
    ),
    "clip: programs share columns": Mutant(
        "tl.program_id(0) * BLOCK_C + tl.arange", "tl.program_id(0) // 2 * BLOCK_C + tl.arange"
    ),
    "clip: the columns' slopes by the rows' sums": Mutant(
        "tl.exp(raw * scale - column_log_sum)", "tl.exp(raw * scale - log_sum)"
    ),
    "clip: one direction only": Mutant("0.5 * (of_row + of_column)", "of_row"),
    "clip, weighted: columns are not": Mutant(
        "column_weight = factor * tl.load(ColumnWeight + column, mask=inside, other=0.0)",
        "column_weight = weight",
    ),
    "clip: int32 rows of columns": Mutant("row[:, None].to(tl.int64) * s_stride", "row[:, None] * s_stride"),
    "sigmoid: the sign of the positive": Mutant(
        "tl.where(own, -1.0, 1.0)", "tl.where(own, 1.0, 1.0)", file=_SHARED
    ),
    "sigmoid: no bias": Mutant("(products * scale + bias)", "(products * scale)", file=_SHARED),
    "sigmoid: columns past the last cost": Mutant("tl.where(inside, softplus(z), 0.0)", "softplus(z)"),
    "sigmoid: slopes past the last column": Mutant(
        "slopes = tl.where(inside, slopes, 0.0)", "slopes = slopes"
    ),
    "sigmoid: no factor": Mutant(
        "tl.full([], 1.0, tl.float32) * factor", "tl.full([], 1.0, tl.float32)", occurrence=1
    ),
    "sigmoid: an own column where there is none": Mutant("PAIRED=offset is not None", "PAIRED=True"),
    "sigmoid: overflow": Mutant(
        "e = tl.exp(-tl.abs(x))\n    return", "e = tl.exp(x)\n    return", file=_SHARED
    ),
    "sigmoid: too few programs": Mutant(
        "_entries[(s.shape[0],)]", "_entries[(max(1, s.shape[0] - 1),)]", occurrence=1
    ),
}

FAMILY = Family(
    name="pairwise epilogue",
    file="epilogue.py",
    problems={
        **{
            f"softmax {rows}x{columns} {str(dtype)[6:]}": partial(_softmax, rows=rows, columns=columns, dtype=dtype)
            for rows, columns in ((1, 1), (5, 7), (3, 5000))
            for dtype in _SLOPES
        },
        "softmax, scale 100": partial(_softmax, rows=5, columns=30, scale=100.0),
        "softmax, scale 100, all far below": partial(_softmax, rows=5, columns=30, scale=100.0, lowered=3.0),
        "softmax, scale below 0": partial(_softmax, rows=5, columns=30, scale=-2.0),
        "softmax, weighted": partial(_softmax, rows=5, columns=30, weighted=True),
        "softmax, all targets": partial(_softmax, rows=9, columns=30, targets="all"),
        "softmax, some targets": partial(_softmax, rows=9, columns=30, targets="some"),
        "softmax, some targets and a margin": partial(_softmax, rows=9, columns=30, targets="some", keep=Columns(margin=0.3)),
        "softmax, some targets, all far below": partial(
            _softmax, rows=9, columns=30, targets="some", lowered=5.0
        ),
        "softmax, bias": partial(_softmax, rows=9, columns=30, biased=True, targets="all"),
        "softmax, sure": _sure,
        "softmax, unknown target": _unknown_target,
        "softmax, scale alone": _no_slopes_for_a_scale,
        **{
            f"softmax, weight 0: {value} {place}": partial(_weighs_nothing, value=value, at=at)
            for value in (math.inf, 3e38, math.nan)
            for place, at in (("as a positive", 1), ("elsewhere", 4))
        },
        **{f"softmax, {name}": partial(_softmax, rows=9, columns=30, keep=keep) for name, keep in _COLUMNS.items()},
        **{
            f"softmax, second panel, {name}": partial(_softmax, rows=4, columns=30, first=6, keep=keep)
            for name, keep in (("excluded", Columns(excluded=1)),)
        },
        **{f"clip {size} {str(dtype)[6:]}": partial(_clip, size=size, dtype=dtype) for size in (1, 9, 130) for dtype in _SLOPES},
        "clip in panels": partial(_clip, size=70, heights=3),
        "clip, weighted, in panels": partial(_clip, size=70, heights=3, weighted=True),
        "clip, scale 100": partial(_clip, size=20, scale=100.0),
        "clip, all far below": partial(_clip, size=20, scale=100.0, lowered=3.0),
        **{
            f"sigmoid {rows}x{columns} {str(dtype)[6:]}": partial(_sigmoid, rows=rows, columns=columns, dtype=dtype)
            for rows, columns in ((1, 1), (5, 7), (3, 5000))
            for dtype in _SLOPES
        },
        "sigmoid, no pairs": partial(_sigmoid, rows=5, columns=7, offset=None),
        "sigmoid, second panel, weighted": partial(_sigmoid, rows=5, columns=30, offset=2, first=4, weighted=True),
        "sigmoid, scale 100": partial(_sigmoid, rows=5, columns=30, scale=100.0),
    },
    configurations={
        **{
            f"softmax, {columns} columns {str(dtype)[6:]}": partial(_configuration, columns=columns, dtype=dtype)
            for columns in (1024, 65536)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "softmax, float16": partial(_configuration, columns=65536, dtype=torch.float16, outs=("dscale",)),
        "softmax, everything": partial(
            _configuration, columns=65536, dtype=torch.bfloat16, weighted=True, labels=1, margin=0.5, excluded=0,
            row_labels=torch.empty(64, dtype=torch.int32), key_labels=torch.empty(65536, dtype=torch.int32),
            outs=("positive", "maximum", "dscale"),
        ),
        "softmax, a classifier": partial(
            _configuration, columns=32000, dtype=torch.bfloat16, weighted=True, bias=torch.empty(32000),
            target=torch.empty(64, dtype=torch.int64),
        ),
        **{
            f"pairs, {columns} columns {str(dtype)[6:]}": partial(_pair_configuration, columns=columns, dtype=dtype, weighted=weighted)
            for columns, dtype, weighted in (
                (1024, torch.bfloat16, False), (65536, torch.float32, False), (65536, torch.bfloat16, True),
            )
        },
    },
    mutants=_MUTANTS,
    huge={f"{kind}: rows 2^26 elements apart": partial(_far, kind=kind) for kind in ("softmax", "clip columns", "sigmoid")},
)  # fmt: skip
