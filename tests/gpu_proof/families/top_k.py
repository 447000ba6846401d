"""Which columns can be among the k most similar ones of a row: the best of groups, and keys of some groups."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any

import torch
from thawkit.kernels.top_k_scores import NONE, Scores
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned, virtual

_NOTHING = -1


def _integers(*shape: int, seed: int = 0) -> Tensor:
    """Products that float32 has exactly, so that many tie."""
    return torch.randint(-40, 41, shape, generator=torch.Generator().manual_seed(seed)).float()


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities and numbers of keys, NaN and -1 where there is none."""
    low = (1 << 31) - 1
    order = (keys >> 32).to(torch.int32)
    none = keys == -(1 << 63)
    values = (order ^ ((order >> 31) & low)).view(torch.float32)
    return values.masked_fill(none, math.nan), (low - (keys & low)).masked_fill(none, _NOTHING)


def _problem(
    rows: int, columns: int, euclidean: bool, excluding: bool, first: int, odd: bool, length: float, gap: int = 4
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """What a kernel gets, and the float64 similarities, NaN of what is none."""
    products = poisoned(rows, columns + gap)[:, :columns]
    products.copy_(_integers(rows, columns) * length)
    if odd:
        for place, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 0.0)):
            products[:, place * 3 % columns] = value
        products[0] = math.nan
        products[-1] = -math.inf
    options: dict[str, Any] = {"products": products, "first": first}
    truth = products.double()
    if euclidean:
        norms, column_norms = (_integers(n, seed=s).abs() * length for n, s in ((rows, 1), (columns, 2)))
        if odd:
            norms[rows // 2], column_norms[columns // 2] = math.inf, math.nan
        options.update(norms=norms, column_norms=column_norms)
        truth = (2 * truth - norms.double()[:, None] - column_norms.double()).clamp_max(0)
        truth = truth.masked_fill(~(norms.isfinite()[:, None] & column_norms.isfinite()), math.nan)
    if excluding:
        excluded = torch.arange(rows) * 7 % (columns + 1) + first - 1
        options["excluded"] = excluded
        truth = truth.masked_fill(excluded[:, None] == torch.arange(columns) + first, math.nan)
    return options, truth


def _ranked(truth: Tensor) -> tuple[Tensor, Tensor]:
    """The best of each row and its column, the first of equal ones; NaN and -1 where there is none."""
    none = truth.isnan()
    order = truth.masked_fill(none, -math.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, none.gather(1, order).int().argsort(dim=1, stable=True))[:, :1]
    return truth.gather(1, order)[:, 0], order[:, 0].masked_fill(none.all(1), _NOTHING)


def _best(
    kernels: ModuleType, rows: int, columns: int, group: int = 8, euclidean: bool = False, excluding: bool = False,
    first: int = 0, odd: bool = False, length: float = 1.0,
) -> list[Comparison]:  # fmt: skip
    options, truth = _problem(rows, columns, euclidean, excluding, first, odd, length)
    groups = -(-columns // group)
    keys = poisoned(rows, groups + 3, dtype=torch.int64)[:, :groups]
    kernels.best_of_groups(Scores(**options), group, keys)
    values, numbers = _decoded(keys)
    best = [_ranked(part)[0] for part in truth.split(group, 1)]
    expected = torch.stack(best, 1)
    # a group without a number has none either
    there = torch.arange(groups).expand(rows, -1).masked_fill(expected.isnan(), _NOTHING)
    return [Comparison("best", values, expected, 0.0), Comparison("groups", numbers, there, 0.0)]


def _keys(
    kernels: ModuleType, rows: int, columns: int, group: int = 8, euclidean: bool = False, excluding: bool = False,
    first: int = 0, odd: bool = False, length: float = 1.0, chosen: int = 0,
) -> list[Comparison]:  # fmt: skip
    """Of all groups, or of ``chosen`` ones in any order, of which the last is none."""
    options, truth = _problem(rows, columns, euclidean, excluding, first, odd, length)
    groups, given = -(-columns // group), None
    padded = torch.full((rows, groups * group), math.nan, dtype=torch.float64)
    padded[:, :columns] = truth
    places = torch.arange(groups * group).expand(rows, -1)
    if chosen:
        which = torch.stack(
            [torch.randperm(groups, generator=torch.Generator().manual_seed(r))[:chosen] for r in range(rows)]
        )
        given = (5 << 32) + (1 << 31) - 1 - which
        given[:, -1] = NONE
        places = (which[:, :, None] * group + torch.arange(group)).flatten(1)
        padded = padded.gather(1, places)
        padded[:, -group:] = math.nan
    keys = poisoned(rows, padded.shape[1] + 5, dtype=torch.int64)[:, : padded.shape[1]]
    kernels.keys_of_groups(Scores(**options), group, given, keys)
    values, numbers = _decoded(keys)
    return [
        Comparison("similarities", values, padded, 0.0),
        Comparison("columns", numbers, (places + first).masked_fill(padded.isnan(), _NOTHING), 0.0),
    ]


def _selected(
    kernels: ModuleType, rows: int, columns: int, k: int, group: int, **options: Any
) -> list[Comparison]:
    """Both together: the k best are the definition's, equal ones in the order of the columns."""
    given, truth = _problem(rows, columns, False, True, 0, **{"odd": False, "length": 1.0, **options})
    scores = Scores(**given)
    best = poisoned(rows, -(-columns // group), dtype=torch.int64)
    kernels.best_of_groups(scores, group, best)
    keys = poisoned(rows, k * group, dtype=torch.int64)
    kernels.keys_of_groups(scores, group, best.topk(k, dim=1, sorted=False).values, keys)
    values, numbers = _decoded(keys.topk(k, dim=1).values)
    order = truth.masked_fill(truth.isnan(), -math.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
    return [
        Comparison("similarities", values, truth.gather(1, order), 0.0),
        Comparison("columns", numbers, order, 0.0),
    ]


def _far(kernels: ModuleType, kind: str) -> list[Comparison]:
    rows, columns, group = 33, 24, 8
    products, keys = (virtual(rows, columns, 1 << 26, dtype) for dtype in (torch.float32, torch.int64))
    products.copy_(_integers(rows, columns))
    scores, last = Scores(products, 0), rows - 1
    if kind == "best":
        out = keys[:, : columns // group]
        kernels.best_of_groups(scores, group, out)
        expected = products[last].view(-1, group).amax(1)
        return [Comparison("the last row", _decoded(out[last])[0], expected, 0.0)]
    given = virtual(rows, 1, 1 << 26, torch.int64)
    given[[0, last]] = (5 << 32) + (1 << 31) - 2
    out = keys[:, :group]
    kernels.keys_of_groups(scores, group, given, out)
    return [Comparison("the last row", _decoded(out[last])[0], products[last, group : 2 * group], 0.0)]


def _configuration(
    kernels: ModuleType, columns: int, group: int, k: int, euclidean: bool = False, excluding: bool = False
) -> None:
    rows = 64
    scores = Scores(
        torch.empty(rows, columns), 0, torch.empty(rows, dtype=torch.int64) if excluding else None,
        torch.empty(rows) if euclidean else None, torch.empty(columns) if euclidean else None,
    )  # fmt: skip
    groups = -(-columns // group)
    keys = torch.empty(rows, groups, dtype=torch.int64)
    chosen = None
    if 2 * k < groups:
        kernels.best_of_groups(scores, group, keys)
        chosen, groups = torch.empty(rows, k, dtype=torch.int64), k
    kernels.keys_of_groups(scores, group, chosen, torch.empty(rows, groups * group, dtype=torch.int64))


_MUTANTS = {
    "best: columns past the last": Mutant("score = tl.load(S + here * s_stride + column, mask=inside, other=float(\"nan\"))", "score = tl.load(S + here * s_stride + column, mask=inside, other=0.0)"),
    "best: no number is one": Mutant("tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NO_ORDER)", "bits ^ ((bits >> 31) & 0x7FFFFFFF)"),
    "best: numbers below 0 in no order": Mutant("bits ^ ((bits >> 31) & 0x7FFFFFFF)", "bits"),
    "best: -0 is below 0": Mutant("score = tl.where(score == 0.0, 0.0, score)", "score = score"),
    "best, euclidean: not twice the product": Mutant("2.0 * score - own", "score - own"),
    "best, euclidean: distances below 0": Mutant("score = tl.where(score > 0.0, 0.0, score)", "score = score"),
    "best, euclidean: infinite norms": Mutant(" + ((own - own) + (other - other))", ""),
    "best, excluded: it counts": Mutant("tl.where(first + column == tl.load(Excluded + here), _NO_ORDER, order)", "order"),
    "best, excluded: by the panel's column": Mutant("first + column == tl.load(Excluded + here)", "column == tl.load(Excluded + here)"),
    "best: other groups": Mutant("tl.reshape(order, (BLOCK // GROUP, GROUP)), 1)", "tl.reshape(order, (GROUP, BLOCK // GROUP)), 0)"),
    "best: groups past the last": Mutant("mask=group < groups)", "mask=group >= 0)"),
    "best: one group's number for all": Mutant("group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)", "group = tl.arange(0, BLOCK // GROUP)"),
    "best: int32 rows": Mutant("here = tl.program_id(0).to(tl.int64)", "here = tl.program_id(0)"),
    "best: the stride of the keys": Mutant("Keys + here * keys_stride + group", "Keys + here * s_stride + group"),
    "keys: int32 rows": Mutant("here = tl.program_id(0).to(tl.int64)", "here = tl.program_id(0)", occurrence=1),
    "keys: the last of equal ones": Mutant("(0x7FFFFFFF - number).to(tl.int64)", "number.to(tl.int64)"),
    "keys: by the panel's column": Mutant("_key(order, first + column)", "_key(order, column)"),
    "keys: no group is the first": Mutant("tl.where(key == _NONE, -1, 0x7", "tl.where(key == _NONE, 0, 0x7"),
    "keys: groups in their order": Mutant("        group = tl.where(key == _NONE, -1, 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32))\n", ""),
    "keys: columns past the last": Mutant("(present & (group >= 0))[:, None] & (column < columns)", "(present & (group >= 0))[:, None] & (column >= 0)"),
    "keys: places past the last": Mutant("mask=present[:, None] & (within >= 0)", "mask=(place >= 0)[:, None] & (within >= 0)"),
    "keys, excluded: it counts": Mutant("tl.where(first + column == tl.load(Excluded + here), _NO_ORDER, order)", "order", occurrence=1),
    "keys: too few programs": Mutant("triton.cdiv(count * group, block)", "max(1, count * group // block)"),
}  # fmt: skip

_KINDS: dict[str, dict[str, Any]] = {
    "1x1": {"rows": 1, "columns": 1},
    "5x37": {"rows": 5, "columns": 37},
    "3x2500": {"rows": 3, "columns": 2500, "group": 32},
    "a group of each block": {"rows": 2, "columns": 2500, "group": 2048},
    "euclidean": {"rows": 6, "columns": 50, "euclidean": True},
    "euclidean, odd": {"rows": 6, "columns": 50, "euclidean": True, "odd": True},
    "excluded": {"rows": 6, "columns": 50, "excluding": True},
    "excluded, second panel": {"rows": 6, "columns": 50, "excluding": True, "first": 70},
    "odd": {"rows": 6, "columns": 50, "odd": True},
    "long": {"rows": 6, "columns": 50, "length": 2.0**100},
    "short": {"rows": 6, "columns": 50, "length": 2.0**-120},
}

FAMILY = Family(
    name="top_k",
    file="top_k.py",
    problems={
        **{f"best, {name}": partial(_best, **kind) for name, kind in _KINDS.items()},
        **{f"keys, {name}": partial(_keys, **kind) for name, kind in _KINDS.items()},
        "keys, chosen": partial(_keys, rows=5, columns=61, chosen=3),
        "keys, chosen, excluded, second panel": partial(_keys, rows=5, columns=61, chosen=3, first=30, excluding=True),
        "keys, many chosen": partial(_keys, rows=2, columns=2400, chosen=150),
        "keys, one of a row": partial(_keys, rows=2, columns=2400, chosen=1),
        "selected": partial(_selected, rows=5, columns=700, k=7, group=8),
        "selected of one number": partial(_selected, rows=5, columns=700, k=30, group=8, length=0.0),
    },
    configurations={
        "1024 columns, 10": partial(_configuration, columns=1024, group=8, k=10),
        "65536 columns, 10": partial(_configuration, columns=65536, group=64, k=10, excluding=True),
        "65536 columns, 1, euclidean": partial(_configuration, columns=65536, group=128, k=1, euclidean=True),
        "65536 columns, 1000, euclidean": partial(_configuration, columns=65536, group=8, k=1000, euclidean=True, excluding=True),
    },
    mutants=_MUTANTS,
    huge={f"{kind}: rows 2^26 elements apart": partial(_far, kind=kind) for kind in ("best", "keys")},
)  # fmt: skip
