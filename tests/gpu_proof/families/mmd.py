"""The kernels of MMD on tiles of inner products: what pairs are worth, slopes, derivatives by the rates."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType

import torch
from thawkit.kernels.mmd_pairs import DIGIT, Layer, Pairs
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned, virtual
from thawkit.ops.pairwise.reference.kernels import Kernel, of_products, of_squares

_SLOPES = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_SUMS = 3e-6
_FEATURES = 5
_ROUNDING = 8 * torch.finfo(torch.float32).eps

SUMMED = 2.0**26  # of earlier tiles, beside which float32 would lose what a tile adds

# name: kind, rates or scale and offset, degree
_KERNELS: dict[str, tuple[str, list[float], int]] = {
    "rbf": ("rbf", [0.7, 0.05, 0.3], 3),
    "doubling": ("doubling", [0.05 * 2**b for b in range(5)], 5),
    "laplace": ("laplace", [0.7, 0.05, 0.3], 3),
    "imq": ("imq", [0.7, 0.05], 2),
    "energy": ("energy", [0.0], 1),
    "linear": ("product", [1.0, 0.0], 1),
    "poly": ("product", [1 / _FEATURES, 1.0], 3),
}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _numbers(kind: str, rates: list[float]) -> tuple[Tensor, Tensor]:
    q = torch.tensor(rates, dtype=torch.float64)
    if kind == "product":
        return q[:1].float(), q[1:].float()
    if kind == "laplace":
        return (-q.sqrt() * math.log2(math.e)).float(), (q.sqrt() / 2).float()
    if kind == "imq":
        return q.float(), q.float()
    return (-q / 2 * math.log2(math.e)).float(), (q / 2).float()


def _value(kind: str, rates: Tensor, degree: int, s: Tensor, norms: Tensor, own: Tensor) -> Tensor:
    if kind == "product":
        scale, offset = rates.tolist()
        return of_products(Kernel("poly", degree=degree, offset=offset), s, round(1 / scale))
    d2 = norms - 2 * s
    d2 = (d2 + (d2.clamp_min(0) - d2).detach()).masked_fill(own, 0)  # slopes are not clamped
    name = {"doubling": "rbf"}.get(kind, kind)
    return of_squares(Kernel(name), rates, d2, _ROUNDING * norms)


def _derivative(kind: str, rates: Tensor) -> Tensor:
    """What the sums of programs are to be multiplied by."""
    return (
        -0.5 / rates.sqrt() if kind == "laplace" else torch.full_like(rates, -1.0 if kind == "imq" else -0.5)
    )


def _tile(
    kernels: ModuleType, rows: int, columns: int, layers: tuple[str, ...], dtype: torch.dtype = torch.float32,
    top: int = 0, left: int = 0, times: float = 1.0, diagonal: bool = True, same: bool = False,
    labelled: bool = False, learned: bool = False, sloped: bool = True, alike: bool = False,
    stretched: float = 1.0, bad: float | None = None, rates_by: float = 1.0,
    grown: float = 1.0,
) -> list[Comparison]:  # fmt: skip
    """Every output of a tile of rows ``top`` and on with rows ``left`` and on, scores with gaps between."""
    count = max(top + rows, left + columns) + 2
    first = count // 2
    chosen = [_KERNELS[name] for name in layers]
    z = [_random(count, _FEATURES, seed=seed).double() * stretched for seed in range(len(layers))]
    if alike:
        z = [rows_of[torch.arange(count) // 3] for rows_of in z]
    if bad is not None:
        z[0][1, 2] = bad
    exact = torch.stack([rows_of[top : top + rows] @ rows_of[left : left + columns].t() for rows_of in z])
    scores = poisoned(len(z), rows, columns + 3)[:, :, :columns]
    scores.copy_(exact * grown)
    norms = torch.stack([rows_of.square().sum(1) for rows_of in z]).float()
    first_numbers, second_numbers = (
        torch.nn.utils.rnn.pad_sequence(list(n), batch_first=True, padding_value=math.nan)
        for n in zip(*(_numbers(k, [r * (rates_by if k != "product" else 1) for r in q]) for k, q, _ in chosen), strict=True)
    )  # fmt: skip
    weights = torch.linspace(0.5, 1.5, count).where(
        torch.arange(count) < first, -torch.linspace(1.0, 0.6, count)
    )
    of_same = torch.full((count,), 1.25).where(torch.arange(count) < first, 1.5) if same else None
    labels = (torch.arange(count, dtype=torch.int32) * 7 + 3) % 3 if labelled else None

    row, column = torch.arange(top, top + rows), torch.arange(left, left + columns)
    own = row[:, None] == column
    counts = weights.double()[row, None] * weights.double()[column]
    if of_same is not None:
        inside = (row < first)[:, None] == (column < first)
        counts = (counts * of_same.double()[column]).where(inside, counts)
    if labels is not None:
        counts = counts * (labels[row, None] == labels[column])
    s = scores.double().requires_grad_()
    wide = norms.double()
    rates = [
        torch.tensor(q, dtype=torch.float64).mul(1.0 if k == "product" else rates_by).requires_grad_()
        for k, q, _ in chosen
    ]
    product = counts
    for l, (kind, _, degree) in enumerate(chosen):
        pair_norms = wide[l, row, None] + wide[l, column]
        k = _value(kind, rates[l], degree, s[l], pair_norms, own)
        # the difference of an infinite norm and itself
        product = product * (k if kind == "product" else k + (pair_norms - pair_norms).where(own, 0))
    if not diagonal:
        product = product.masked_fill(own, 0)
    value, size = product.sum(), product.detach().abs().sum()
    truths = torch.autograd.grad(value, (s, *rates), allow_unused=True)
    of_distances = torch.tensor([k != "product" for k, *_ in chosen])[:, None, None]
    slopes = (truths[0] / 2).where(of_distances, truths[0])

    programs = kernels.programs(rows, columns, len(layers))
    worth = torch.full((programs,), 0.5, dtype=torch.float64)
    sums = torch.full((programs, *first_numbers.shape), SUMMED, dtype=torch.float64)
    pairs = Pairs(
        tuple(Layer(kind, degree, sloped, learned and kind in ("rbf", "laplace", "imq")) for kind, _, degree in chosen),
        norms, first_numbers, second_numbers, _ROUNDING, weights, of_same, labels, first, diagonal, worth,
        sums if learned else None,
    )  # fmt: skip
    before = scores.clone()
    written = None
    if sloped:
        written = scores if dtype == torch.float32 else poisoned(*scores.shape, dtype=dtype)
    kernels.tile(pairs, scores, written, top, left, times)
    found = worth.sum() - 0.5 * programs
    size = size.where(size.isfinite(), 0.0)
    # relative to the sum of the sizes: the pairs of both samples cancel
    of_sizes = [torch.stack([v, times * size]) for v in (found, times * value.detach())]
    compared = [Comparison("value", *of_sizes, _SUMS)]
    if written is None or dtype != torch.float32:
        compared.append(Comparison("scores", scores, before, 0.0))
    if written is not None:
        compared += [
            Comparison(f"slopes of {name}", written[l], slopes[l], _SLOPES[dtype] * (1 + 2 * (name == "poly")))
            for l, name in enumerate(layers)
        ]  # fmt: skip
    for l, (kind, _, _) in enumerate(chosen):
        if learned and kind in ("rbf", "laplace", "imq"):
            by_rates = (sums[:, l, : len(rates[l])] - SUMMED).sum(0)
            truth = times * truths[1 + l] / _derivative(kind, rates[l].detach())
            compared.append(Comparison(f"rates of {layers[l]}", by_rates, truth, 10 * _SUMS))
    return compared


def _twice(kernels: ModuleType) -> list[Comparison]:
    """Two tiles, the second smaller, add to the same numbers."""
    q, rate = torch.full((1, 1), -0.5), torch.full((1, 1), 0.3)
    norms, weights = torch.ones(1, 700), torch.ones(700)
    worth = torch.zeros(kernels.programs(70, 600, 1), dtype=torch.float64)
    pairs = Pairs((Layer("rbf", 1),), norms, q, rate, _ROUNDING, weights, None, None, 350, True, worth)
    for rows, columns, left in ((70, 600, 100), (3, 20, 200)):
        kernels.tile(pairs, torch.zeros(1, rows, columns), None, 0, left, 1.0)
    return [
        Comparison("value", worth.sum(), torch.tensor((70 * 600 + 3 * 20) * 0.5, dtype=torch.float64), _SUMS)
    ]


def _values(
    kernels: ModuleType, rows: int, columns: int, name: str, top: int = 0, left: int = 0
) -> list[Comparison]:
    kind, numbers, count = _KERNELS[name]
    z = _random(max(top + rows, left + columns), _FEATURES).double()
    exact = z[top : top + rows] @ z[left : left + columns].t()
    scores = poisoned(rows, columns + 3)[:, :columns]
    scores.copy_(exact)
    norms = z.square().sum(1).float()
    own = torch.arange(top, top + rows)[:, None] == torch.arange(left, left + columns)
    pair_norms = norms.double()[top : top + rows, None] + norms.double()[left : left + columns]
    truth = _value(kind, torch.tensor(numbers, dtype=torch.float64), count, scores.double(), pair_norms, own)
    first, second = (n[None] for n in _numbers(kind, numbers))
    none = torch.empty(0)
    pairs = Pairs(
        (Layer(kind, count),),
        norms[None],
        first,
        second,
        _ROUNDING,
        none,
        None,
        None,
        0,
        True,
        none.double(),
    )
    kernels.values(pairs, scores, top, left)
    return [Comparison("values", scores, truth.masked_fill(own, 0), 3e-6)]


def _digits(
    kernels: ModuleType, rows: int, columns: int, top: int = 0, left: int = 0, alike: bool = False
) -> list[Comparison]:
    """All three passes, each with the leading digits of some pair."""
    z = _random(max(top + rows, left + columns), _FEATURES)
    if alike:
        z = z[torch.arange(len(z)) // 2]
    scores = poisoned(rows, columns + 3)[:, :columns]
    scores.copy_(z.double()[top : top + rows] @ z.double()[left : left + columns].t() * (1 - 3e-7 * alike))
    norms = z.square().sum(1)
    pair_norms = norms[top : top + rows, None] + norms[left : left + columns]
    squares = pair_norms - 2 * scores
    squares = squares.where(squares > _ROUNDING * pair_norms, 0.0)
    later = torch.arange(top, top + rows)[:, None] < torch.arange(left, left + columns)
    bits = squares[later].view(torch.int32).long()
    some = int(bits[len(bits) // 3]) if len(bits) else 0
    compared = []
    for shift in (2 * DIGIT, DIGIT, 0):
        before = some >> shift >> DIGIT
        of_these = bits[bits >> shift >> DIGIT == before]
        truth = torch.bincount((of_these >> shift) % (1 << DIGIT), minlength=1 << DIGIT)
        counts = torch.full((1 << DIGIT,), 5)
        found = torch.tensor([before], dtype=torch.int32)
        kernels.count_digits(scores, norms, found, counts, shift, top, left, _ROUNDING)
        compared.append(Comparison(f"counts by the bits from {shift} on", counts - 5, truth, 0.0))
    return compared


def _far(kernels: ModuleType, kind: str) -> list[Comparison]:
    rows, columns = 33, 17
    scores = virtual(rows, columns, 1 << 26, torch.float32)
    scores.copy_(_random(rows, columns) / 4)
    norms, weights = torch.full((1, 64), 2.0), torch.ones(64)
    first, second = torch.full((1, 1), -0.5), torch.full((1, 1), 0.3)
    worth = torch.zeros(kernels.programs(rows, columns, 1), dtype=torch.float64)
    pairs = Pairs(
        (Layer("rbf", 1, kind == "slopes"),),
        norms,
        first,
        second,
        _ROUNDING,
        weights,
        None,
        None,
        9,
        True,
        worth,
    )
    truth = (-0.5 * (4 - 2 * scores[-1].double())).exp2()
    if kind == "digits":
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        last = (4 - 2 * scores[-1]).view(torch.int32) % (1 << DIGIT)
        found = (4 - 2 * scores[-1, :1]).view(torch.int32) >> DIGIT
        kernels.count_digits(scores, norms[0], found, counts, 0, 0, 40, _ROUNDING)
        return [Comparison("the last count", (counts[last[:1].long()] > 0).int(), torch.ones(1), 0.0)]
    if kind == "values":
        kernels.values(pairs, scores, 0, 40)
        return [Comparison("the last values", scores[-1], truth, 1e-6)]
    kernels.tile(pairs, scores[None], scores[None], 0, 40, 1.0)
    return [Comparison("the last slopes", scores[-1], 0.3 * truth, 1e-6)]


def _configuration(
    kernels: ModuleType, layers: tuple[str, ...], dtype: torch.dtype = torch.float32, left: int = 0,
    weighted: bool = False, labelled: bool = False, learned: bool = False, sloped: bool = True, unbiased: bool = False,
) -> None:  # fmt: skip
    size, count = 1024, 4096
    chosen = [_KERNELS[name] for name in layers]
    bandwidths = max(len(q) if k != "product" else 1 for k, q, _ in chosen)
    numbers, programs = torch.empty(len(layers), bandwidths), kernels.programs(size, size, len(layers))
    worth = torch.empty(programs, dtype=torch.float64)
    pairs = Pairs(
        tuple(Layer(kind, degree, sloped, learned and kind in ("rbf", "laplace", "imq")) for kind, _, degree in chosen),
        torch.empty(len(layers), count), numbers, numbers, _ROUNDING, torch.empty(count),
        torch.empty(count) if weighted or unbiased else None,
        torch.empty(count, dtype=torch.int32) if labelled else None, 2000, not unbiased, worth,
        torch.empty(programs, len(layers), bandwidths, dtype=torch.float64) if learned else None,
    )  # fmt: skip
    scores = torch.empty(len(layers), size, size)
    slopes = (
        (scores if dtype == torch.float32 else torch.empty(scores.shape, dtype=dtype)) if sloped else None
    )
    kernels.tile(pairs, scores, slopes, 0, left, 2.0 if left else 1.0)
    if len(layers) == 1 and not learned:
        kernels.values(pairs, scores[0], 0, left)
    if layers == ("energy",):
        found, counts = torch.empty(1, dtype=torch.int32), torch.empty(1 << DIGIT, dtype=torch.int64)
        for shift in (2 * DIGIT, 0):
            kernels.count_digits(scores[0], torch.empty(count), found, counts, shift, 0, left, _ROUNDING)


_MUTANTS = {
    "rbf: no half of the norms": Mutant("d2 = norms - 2.0 * s", "d2 = norms - s"),
    "rbf, a bad row: a row that is no number is near": Mutant(
        "d2 = tl.where(d2 < 0.0, 0.0, d2)", "d2 = tl.where(d2 > 0.0, d2, 0.0)"
    ),
    "rbf, squares: below 0": Mutant("d2 = tl.where(d2 < 0.0, 0.0, d2)", "d2 = d2"),
    "doubling: the squarings are of the first": Mutant("e = e * e", "e = k * k"),
    "doubling: the slopes forget the rates": Mutant("slope += e * (1 << b)", "slope += e"),
    "doubling: no own slope of the first rate": Mutant("slope *= tl.load(Second)\n", "slope *= 1.0\n"),
    "rbf: all rates are the first": Mutant("e = tl.exp2(d2 * tl.load(First + b))", "e = tl.exp2(d2 * tl.load(First))"),
    "imq: slopes of r": Mutant("slope += r * r * tl.load", "slope += r * tl.load"),
    "laplace: slopes by the square": Mutant("slope *= inverse", "slope *= inverse * inverse"),
    "laplace, rounding: of 0 has a root": Mutant("same = d2 <= norms * rounding", "same = d2 <= 0.0 * norms"),
    "energy: its sign": Mutant("k = -d\n", "k = d\n"),
    "poly: the degree of the slope": Mutant("scale * COUNT", "scale * 1.0"),
    "poly: one power too many": Mutant("k = p\n", "k = p * p\n"),
    "rbf, products: a row is at a distance from itself": Mutant("return tl.where(own, norms - norms, d2)", "return d2"),
    "energy, a bad row alone: it is at no distance from itself": Mutant("tl.where(own, norms - norms, d2)", "tl.where(own, 0.0, d2)"),
    "rbf, second panel: the own pair by the tile's row": Mutant("own = of_row[:, None] == of_column[None, :]", "own = row[:, None] == column[None, :]"),
    "rbf: own slopes": Mutant("slope = tl.where(own, 0.0, slope)", "slope = slope"),
    "rbf, unbiased: own pairs count": Mutant("out = out | own", "out = out"),
    "rbf, same: both samples": Mutant("factor = tl.where(inside, factor * same[None, :], factor)", "factor = factor * same[None, :]"),
    "rbf, same: by the tile's columns": Mutant("(of_column[None, :] < first)", "(column[None, :] < first)"),
    "rbf, labels: all are alike": Mutant("tl.where(label[:, None] == others[None, :], factor, 0.0)", "factor"),
    "rbf: weights of the rows only": Mutant("factor = factor * tl.load(Weights + of_column, mask=in_columns, other=0.0)[None, :]", "factor = factor * 1.0"),
    "rbf, a second panel: weights by the tile's row": Mutant("tl.load(Weights + of_row,", "tl.load(Weights + row,"),
    "rbf, unbiased: own pairs are worth something": Mutant("tl.sum(tl.where(out, 0.0, factor), 1)", "tl.sum(factor, 1)"),
    "rbf: rows past the last are loaded": Mutant("there = in_rows[:, None] & in_columns[None, :]", "there = (row[:, None] >= 0) & in_columns[None, :]"),
    "rbf: columns past the last are stored": Mutant("tl.store(W + l * w_layer + w_at, slope, mask=there)", "tl.store(W + l * w_layer + w_at, slope)"),
    "rbf: the stride of the slopes": Mutant("w_at = row[:, None].to(tl.int64) * w_stride", "w_at = row[:, None].to(tl.int64) * s_stride"),
    "slopes: int32 rows of scores": Mutant("at = row[:, None].to(tl.int64) * s_stride", "at = row[:, None] * s_stride"),
    "slopes: int32 rows of slopes": Mutant("w_at = row[:, None].to(tl.int64) * w_stride", "w_at = row[:, None] * w_stride"),
    "rbf: programs share a number": Mutant("tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)", "tl.program_id(1) + tl.program_id(0)"),
    "rbf, twice: the sum is written, not added": Mutant("tl.load(Value + program) + worth.to(tl.float64)", "worth.to(tl.float64)"),
    "rbf, a second panel: pairs count once": Mutant("tl.sum(tl.sum(tl.where(out, 0.0, factor), 1), 0) * times", "tl.sum(tl.sum(tl.where(out, 0.0, factor), 1), 0)"),
    "2 layers: slopes without those before": Mutant("tl.where(out, 0.0, before[l] * after)", "tl.where(out, 0.0, before[0] * after)"),
    "2 layers: slopes without those after": Mutant("after = after * kernels[l]", "after = after * 1.0"),
    "2 layers: the norms of the first": Mutant("Norms + l * count, of_row", "Norms, of_row"),
    "2 layers: the numbers of the first": Mutant("First + l * BANDWIDTHS, Second", "First, Second"),
    "2 layers: a layer's slopes over another's": Mutant("W + l * w_layer", "W + (1 - l) * w_layer"),
    "learned: times is forgotten": Mutant("tl.sum(tl.sum(factor * t, 1), 0) * times", "tl.sum(tl.sum(factor * t, 1), 0)"),
    "learned: sums of float32": Mutant("tl.load(Sums + b) + total.to(tl.float64)", "(tl.load(Sums + b).to(tl.float32) + total).to(tl.float64)"),
    "learned: rates of another program": Mutant("(program * LAYERS + l)", "(tl.program_id(0) * LAYERS + l)"),
    "learned: squares in place of distances": Mutant("d, _ = _roots(d2, norms, rounding)", "d = d2"),
    "learned: imq as rbf": Mutant('if KIND == "imq":\n            r =', 'if KIND == "other":\n            r ='),
    "values: the diagonal stays": Mutant("tl.where(own, 0.0, k), mask=there", "k, mask=there"),
    "values: int32 rows": Mutant("scores = S + row[:, None].to(tl.int64) * s_stride", "scores = S + row[:, None] * s_stride"),
    "values: too few programs": Mutant("_values[(triton.cdiv(columns, block_c), triton.cdiv", "_values[(max(1, columns // block_c), triton.cdiv"),
    "digits: a pair counts in both orders": Mutant("(top + row[:, None] < left + column[None, :])", "(top + row[:, None] != left + column[None, :])"),
    "digits: the diagonal by the tile's rows": Mutant("top + row[:, None] < left + column", "row[:, None] < column"),
    "digits: columns past the last count": Mutant("counted = in_rows[:, None] & in_columns[None, :]", "counted = in_rows[:, None] & (column[None, :] >= 0)"),
    "digits: all pairs count": Mutant("if SHIFT + BITS < 31:", "if SHIFT + BITS < 0:"),
    "digits, alike: rounding of 0": Mutant("d2 > norms * rounding, d2, 0.0", "d2 > 0.0, d2, 0.0"),
    "digits: a bit too few": Mutant("((1 << BITS) - 1)", "((1 << (BITS - 1)) - 1)"),
    "digits: programs overwrite each other": Mutant("tl.atomic_add(Counts + tl.arange(0, 1 << BITS), found.to(tl.int64)", "tl.store(Counts + tl.arange(0, 1 << BITS), found.to(tl.int64)"),
    "digits: int32 rows": Mutant("at = row[:, None].to(tl.int64) * s_stride", "at = row[:, None] * s_stride", occurrence=1),
    "values: no own pairs right of the first panel": Mutant("return top < left + columns and left < top + rows", "return top == left == 0"),
}  # fmt: skip

FAMILY = Family(
    name="mmd",
    file="mmd.py",
    problems={
        **{
            f"{name} {rows}x{columns} {str(dtype)[6:]}": partial(_tile, rows=rows, columns=columns, layers=(name,), dtype=dtype)
            for name in _KERNELS
            for rows, columns, dtype in ((5, 7, torch.float32), (19, 300, torch.bfloat16))
        },
        **{
            f"rbf {rows}x{columns} {str(dtype)[6:]}": partial(_tile, rows=rows, columns=columns, layers=("rbf",), dtype=dtype)
            for rows, columns in ((1, 1), (130, 3), (17, 530))
            for dtype in _SLOPES
        },
        "rbf, second panel": partial(_tile, rows=9, columns=9, layers=("rbf",), top=20, left=20),
        "rbf, a second panel right of the first": partial(_tile, rows=9, columns=30, layers=("rbf",), top=3, left=12, times=2.0),
        "rbf, a panel that crosses": partial(_tile, rows=9, columns=30, layers=("rbf",), top=11, left=4),
        "rbf, unbiased": partial(_tile, rows=9, columns=9, layers=("rbf",), diagonal=False, same=True),
        "rbf, same": partial(_tile, rows=9, columns=30, layers=("rbf",), top=3, left=12, same=True, times=2.0),
        "rbf, labels": partial(_tile, rows=9, columns=30, layers=("rbf",), labelled=True),
        "rbf, labels and same": partial(_tile, rows=9, columns=30, layers=("rbf",), labelled=True, same=True, diagonal=False),
        "rbf, value alone": partial(_tile, rows=9, columns=30, layers=("rbf",), sloped=False),
        "rbf, twice": _twice,
        **{
            f"{name}, {what}": partial(_tile, rows=20, columns=20, layers=(name,), **options)
            for name in _KERNELS
            for what, options in {
                "alike": {"alike": True},
                "a bad row": {"bad": math.nan},
                "an infinite row": {"bad": math.inf, "sloped": name in ("linear", "poly")},
            }.items()
            if not (what == "an infinite row" and name in ("linear", "poly"))
        },
        "rbf, squares below 0": partial(_tile, rows=20, columns=20, layers=("rbf",), alike=True, grown=1.2),
        "rbf, products too small": partial(_tile, rows=20, columns=20, layers=("rbf",), grown=0.9),
        **{
            f"{name}, rounding of 0": partial(_tile, rows=20, columns=20, layers=(name,), alike=True, grown=1 - 3e-7)
            for name in ("laplace", "energy")
        },
        "energy, a bad row alone": partial(_tile, rows=1, columns=1, top=1, left=1, layers=("energy",), bad=math.inf),
        **{
            f"{name}, a stretched sample": partial(_tile, rows=20, columns=20, layers=(name,), stretched=stretched, rates_by=stretched**-2)
            for name in ("rbf", "doubling", "laplace", "imq", "energy")
            for stretched in (1e15, 1e-9)
        },
        **{
            f"rbf, rates {rates_by}": partial(_tile, rows=20, columns=20, layers=("rbf",), rates_by=rates_by)
            for rates_by in (1e-36, 1e37)
        },
        **{
            f"2 layers, {', '.join(layers)} {str(dtype)[6:]}": partial(_tile, rows=9, columns=30, layers=layers, dtype=dtype)
            for layers in (("doubling", "rbf"), ("laplace", "linear"))
            for dtype in (torch.float32, torch.bfloat16)
        },
        "3 layers": partial(_tile, rows=9, columns=30, layers=("energy", "poly", "imq"), same=True, labelled=True),
        "8 layers": partial(_tile, rows=9, columns=30, layers=("imq", "rbf", "doubling", "laplace", "linear", "energy", "poly", "rbf"), diagonal=False),
        **{
            f"learned {name}": partial(_tile, rows=19, columns=300, layers=(name,), learned=True, times=2.0, top=2, left=30)
            for name in ("rbf", "laplace", "imq")
        },
        "learned, 2 layers": partial(_tile, rows=12, columns=12, layers=("laplace", "rbf"), learned=True, same=True, diagonal=False),
        "learned, value and rates alone": partial(_tile, rows=40, columns=20, layers=("rbf",), learned=True, sloped=False),
        **{f"values, {name}": partial(_values, rows=9, columns=300, name=name) for name in _KERNELS},
        "digits": partial(_digits, rows=19, columns=300),
        "digits, second panel": partial(_digits, rows=19, columns=30, top=20, left=15),
        "digits, a second panel right of the first": partial(_digits, rows=19, columns=30, left=40),
        "digits, alike": partial(_digits, rows=19, columns=19, alike=True),
        "values, second panel": partial(_values, rows=9, columns=20, name="rbf", top=20, left=15),
        "values, a second panel right of the first": partial(_values, rows=9, columns=20, name="rbf", left=15),
    },
    configurations={
        **{
            f"{name} {str(dtype)[6:]}": partial(_configuration, layers=(name,), dtype=dtype)
            for name in _KERNELS
            for dtype in (torch.float32, torch.bfloat16)
        },
        "doubling, right of the panel": partial(_configuration, layers=("doubling",), left=1024),
        "doubling, right of the panel, bfloat16": partial(_configuration, layers=("doubling",), left=1024, dtype=torch.bfloat16),
        "doubling, unbiased": partial(_configuration, layers=("doubling",), unbiased=True),
        "doubling, value alone": partial(_configuration, layers=("doubling",), sloped=False),
        "doubling, weights and labels": partial(_configuration, layers=("doubling",), dtype=torch.bfloat16, weighted=True, labelled=True, unbiased=True),
        **{
            f"{name}, learned": partial(_configuration, layers=(name,), learned=True, weighted=True)
            for name in ("rbf", "laplace", "imq")
        },
        "local": partial(_configuration, layers=("doubling", "linear")),
        "local bfloat16": partial(_configuration, layers=("doubling", "linear"), dtype=torch.bfloat16),
        "joint of 2": partial(_configuration, layers=("doubling", "doubling"), unbiased=True),
        "joint of 3, everything": partial(
            _configuration, layers=("laplace", "rbf", "imq"), learned=True, labelled=True, unbiased=True
        ),
        "joint of 8": partial(_configuration, layers=("doubling",) * 8, dtype=torch.bfloat16, labelled=True, unbiased=True),
    },
    mutants=_MUTANTS,
    huge={f"{kind}: rows 2^26 elements apart": partial(_far, kind=kind) for kind in ("slopes", "values", "digits")},
)  # fmt: skip
