"""The fused losses: no matrix of logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, off, poisoned, virtual

# float32 sums; half precision rounds the slopes once more before the second product
_SUMS = 3e-6
_GRADIENT = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 8e-3}
_DSCALE = 1e-4  # of CLIP, on panels too: slopes times products, which cancel
_BIAS = -2.0

Outputs = dict[str, Tensor]


def _rows(count: int, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, features, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _sums(kernels: ModuleType, count: int, weight: Tensor | None = None) -> Any:
    statistics = (poisoned(count) for _ in range(3))
    return kernels.Sums(*statistics, torch.ones(count) if weight is None else weight)


def _true_sums(logits: Tensor, own: Tensor) -> Outputs:
    """Of rows that belong to the columns ``own``; a logit of -inf does not count."""
    logits = logits.detach()
    others = logits.scatter(1, own[:, None], -torch.inf)
    log_sum, maximum = logits.logsumexp(1), logits.amax(1)
    return {
        "maximum": maximum,
        "sum": (log_sum - maximum).exp(),
        "missing": (others.logsumexp(1) - log_sum).exp(),
    }


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.double().requires_grad_() for x in tensors]


def _true_info_nce(q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, rounding: Tensor) -> Outputs:
    """What the kernels return, in float64, and so below; ``rounding`` is added to the products."""
    q, k, scale = _leaves(q, k, scale)
    logits, own = scale * (q @ k.t() + rounding), torch.arange(q.shape[0])
    loss = F.cross_entropy(logits, own, reduction="none")
    dq, dk, dscale = torch.autograd.grad((loss * weight.double()).sum(), (q, k, scale))
    return {
        "loss": loss, **_true_sums(logits, own), "dq": dq / scale, "dk": dk / scale, "dscale": dscale,
    }  # fmt: skip


def _info_nce(kernels: ModuleType, q: Tensor, k: Tensor, scale: Tensor, weight: Tensor) -> Outputs:
    loss, dscale, sums = poisoned(q.shape[0]), poisoned(q.shape[0]), _sums(kernels, q.shape[0], weight)
    dq, dk = poisoned(*q.shape), poisoned(*k.shape)
    kernels.softmax_forward(q, k, scale, loss, sums)
    kernels.info_nce_backward_queries(q, k, scale, sums, dq, dscale)
    kernels.info_nce_backward_keys(q, k, scale, sums, dk)
    statistics = dict(zip(("maximum", "sum", "missing"), sums[:3], strict=True))
    return {"loss": loss, **statistics, "dq": dq, "dk": dk, "dscale": dscale.sum()}


def _true_siglip(
    q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, rounding: Tensor, offset: int | None
) -> Outputs:
    q, k, scale, bias = _leaves(q, k, scale, torch.tensor(_BIAS))
    signs = torch.full((q.shape[0], k.shape[0]), -1.0, dtype=torch.float64)
    if offset is not None:
        signs.diagonal(offset).fill_(1.0)
    loss = -F.logsigmoid(signs * (scale * (q @ k.t() + rounding) + bias)).sum(1)
    dq, dk, dscale, dbias = torch.autograd.grad((loss * weight.double()).sum(), (q, k, scale, bias))
    return {"loss": loss, "dq": dq / scale, "dk": dk / scale, "dscale": dscale, "dbias": dbias}


def _siglip(
    kernels: ModuleType, q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, offset: int | None
) -> Outputs:
    loss, dscale, dbias = (poisoned(q.shape[0]) for _ in range(3))
    dq, dk, numbers = poisoned(*q.shape), poisoned(*k.shape), (scale, torch.tensor(_BIAS), offset)
    kernels.siglip_forward(q, k, *numbers, loss)
    kernels.siglip_backward_rows(q, k, *numbers, weight, dq, dscale, dbias)
    kernels.siglip_backward_columns(q, k, *numbers, weight, dk)
    return {"loss": loss, "dq": dq, "dk": dk, "dscale": dscale.sum(), "dbias": dbias.sum()}


def _true_clip(q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, rounding: Tensor) -> Outputs:
    q, k, scale = _leaves(q, k, scale)
    logits, own = scale * (q @ k.t() + rounding), torch.arange(q.shape[0])
    loss = F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.t(), own, reduction="none")
    dq, dk, dscale = torch.autograd.grad((loss * weight.double()).sum(), (q, k, scale))
    return {"loss": loss, "dq": dq / scale, "dk": dk / scale, "dscale": dscale}


def _clip(kernels: ModuleType, q: Tensor, k: Tensor, scale: Tensor, weight: Tensor) -> Outputs:
    size = q.shape[0]
    of_rows, of_columns, dscale = poisoned(size), poisoned(size), poisoned(size)
    rows, columns = (_sums(kernels, size, weight) for _ in range(2))
    dq, dk = poisoned(*q.shape), poisoned(*k.shape)
    kernels.softmax_forward(q, k, scale, of_rows, rows)
    kernels.softmax_forward(k, q, scale, of_columns, columns)
    kernels.clip_backward(q, k, scale, rows, columns, dq, dscale)
    kernels.clip_backward(k, q, scale, columns, rows, dk, torch.empty(0))
    return {"loss": of_rows + of_columns, "dq": dq, "dk": dk, "dscale": dscale.sum()}


def _true_nt_xent(q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, rounding: Tensor) -> Outputs:
    z, scale = _leaves(q, scale)
    rows = z.shape[0]
    logits, own = scale * (z @ z.t() + rounding), torch.arange(rows).roll(rows // 2)
    logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf)
    loss = F.cross_entropy(logits, own, reduction="none")
    dz, dscale = torch.autograd.grad((loss * weight.double()).sum(), (z, scale))
    return {"loss": loss, **_true_sums(logits, own), "dz": dz / scale, "dscale": dscale}


def _nt_xent(kernels: ModuleType, q: Tensor, k: Tensor, scale: Tensor, weight: Tensor) -> Outputs:
    loss, dscale, sums = poisoned(q.shape[0]), poisoned(q.shape[0]), _sums(kernels, q.shape[0], weight)
    dz = poisoned(*q.shape)
    kernels.softmax_forward(q, q, scale, loss, sums, q.shape[0] // 2)
    kernels.nt_xent_backward(q, scale, sums, dz, dscale)
    statistics = dict(zip(("maximum", "sum", "missing"), sums[:3], strict=True))
    return {"loss": loss, **statistics, "dz": dz, "dscale": dscale.sum()}


_LOSSES: dict[str, tuple[Callable[..., Outputs], Callable[..., Outputs]]] = {
    "info_nce": (_info_nce, _true_info_nce),
    "siglip": (_siglip, _true_siglip),
    "clip": (_clip, _true_clip),
    "nt_xent": (_nt_xent, _true_nt_xent),
}


def _compared(
    kernels: ModuleType, loss: str, q: Tensor, k: Tensor, scale: float, **options: Any
) -> list[Comparison]:
    """Allow what float32 sums err by, and twice what the rounding of float32 products alone would cost.

    The exponentials take that rounding times the scale; float64 after it is the best that float32 can do.
    """
    run, truth_of = _LOSSES[loss]
    weight = torch.linspace(0.5, 1.5, q.shape[0])
    if q.dtype == torch.float16:
        weight *= 4096.0  # as the engine does, so that slopes do not vanish
    given = q, k, torch.tensor(scale), weight
    rounding = (q.float() @ k.float().t()).double() - q.double() @ k.double().t()
    got = run(kernels, *given, **options)
    truth = truth_of(*given, torch.zeros_like(rounding), **options)
    best = truth_of(*given, rounding, **options)
    compared = []
    for name, exact in truth.items():
        allowed = _GRADIENT[q.dtype if name in ("dq", "dk", "dz") else torch.float32]
        allowed = allowed if name[0] == "d" else _SUMS
        if (loss, name) == ("clip", "dscale"):
            allowed = _DSCALE
        allowed += 2 * off(best[name].detach(), exact.detach())
        compared.append(Comparison(name, got[name], exact.detach(), allowed))
    return compared


def _random(
    kernels: ModuleType, loss: str, rows: int, keys: int, features: int, dtype: torch.dtype,
    scale: float = 14.3, aligned: bool = False, opposed: bool = False, **options: Any,
) -> list[Comparison]:  # fmt: skip
    q, k = _rows(rows, features, dtype, 0), _rows(keys, features, dtype, 1)
    if aligned:
        k[:rows] = F.normalize(q.float() + 0.7 * k[:rows].float()).to(dtype)
    if opposed:
        q[:, 0], k[:, 0] = 5.0, -5.0
        q, k = F.normalize(q.float()).to(dtype), F.normalize(k.float()).to(dtype)
    if loss == "nt_xent":
        k = q
        if aligned:
            half = rows // 2
            q[:half] = F.normalize(q[half:].float() + 0.7 * q[:half].float()).to(dtype)
    return _compared(kernels, loss, q, k, scale, **options)


def _far_apart(kernels: ModuleType) -> list[Comparison]:
    q, k = (virtual(33, 16, 1 << 26, torch.bfloat16) for _ in range(2))
    q.copy_(_rows(33, 16, torch.bfloat16, 0))
    k.copy_(_rows(33, 16, torch.bfloat16, 1))
    return _compared(kernels, "info_nce", q, k, 3.0)


def _far_gradients(kernels: ModuleType, of: str) -> list[Comparison]:
    """Gradients that end past 2^31, of rows that are one and the same in memory; statistics are made up."""
    rows, features = (1 << 21) + 33, 1024
    one, few = _rows(1, features, torch.bfloat16, 0), _rows(5, features, torch.bfloat16, 1)
    many, gradient = one.expand(rows, -1), torch.empty(rows, features, dtype=torch.bfloat16)
    gradient[-1] = torch.nan
    scale = torch.tensor(2.0)
    products = few.double() @ one[0].double()
    truth = (2.0 * products).exp() @ few.double()  # no row among the last has a positive
    zeros, ones = (torch.full((rows if of == "queries" else 5,), x) for x in (0.0, 1.0))
    sums = kernels.Sums(zeros, ones, zeros, ones)
    if of == "queries":
        kernels.info_nce_backward_queries(many, few, scale, sums, gradient, torch.empty(0))
    else:
        kernels.info_nce_backward_keys(few, many, scale, sums, gradient)
    return [Comparison(f"the last {of}' gradient", gradient[-1], truth, _GRADIENT[torch.bfloat16])]


def _keys_apart(kernels: ModuleType) -> list[Comparison]:
    """Keys that are columns of a wider matrix, so that their rows lie further apart than the queries' do."""
    q, k = _rows(40, 24, torch.float32, 0), poisoned(70, 31)[:, :24]
    k.copy_(_rows(70, 24, torch.float32, 1))
    return _compared(kernels, "info_nce", q, k, 3.0)


def _only(kernels: ModuleType, loss: str, wanted: str) -> list[Comparison]:
    """Outputs that nobody asked for have no memory: writing to it is out of bounds."""
    q, k = _rows(6, 3, torch.float32, 0), _rows(6, 3, torch.float32, 1)
    scale, bias, weight, zero = torch.tensor(2.0), torch.tensor(_BIAS), torch.ones(6), torch.zeros(6, 6)
    out = {name: torch.empty(0) for name in ("dq", "dscale", "dbias")}
    out[wanted] = poisoned(6, 3) if wanted == "dq" else poisoned(6)
    sums, columns, unused = _sums(kernels, 6), _sums(kernels, 6), poisoned(6)
    if loss == "siglip":
        truth = _true_siglip(q, k, scale, weight, zero, 0)
        kernels.siglip_backward_rows(q, k, scale, bias, 0, weight, *out.values())
    elif loss == "nt_xent":
        truth = _true_nt_xent(q, q, scale, weight, zero)
        truth["dq"] = truth["dz"]
        kernels.softmax_forward(q, q, scale, unused, sums, 3)
        kernels.nt_xent_backward(q, scale, sums, out["dq"], out["dscale"])
    else:
        truth = _LOSSES[loss][1](q, k, scale, weight, zero)
        kernels.softmax_forward(q, k, scale, unused, sums)
        kernels.softmax_forward(k, q, scale, unused, columns)
        if loss == "clip":
            kernels.clip_backward(q, k, scale, sums, columns, out["dq"], out["dscale"])
        else:
            kernels.info_nce_backward_queries(q, k, scale, sums, out["dq"], out["dscale"])
    got = out[wanted] if wanted == "dq" else out[wanted].sum()
    return [Comparison(wanted, got, truth[wanted], _GRADIENT[torch.float32])]


def _weighs_nothing(kernels: ModuleType, loss: str, value: float) -> list[Comparison]:
    """A row of weight 0 whose logits overflow has no gradient, and gives none."""
    q, k = _rows(5, 3, torch.float32, 0), _rows(7, 3, torch.float32, 1)
    scale, weight, rest = torch.tensor(2.0), torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0]), torch.ones(5) > 0
    rest[2] = False
    zero, options = torch.zeros(5, 7), {"offset": 0} if loss == "siglip" else {}
    run, truth_of = _LOSSES[loss]
    truth = truth_of(q, k, scale, weight, zero, **options)
    q[2] = value
    got = run(kernels, q, k, scale, weight, **options)
    names = truth.keys() & {"dq", "dk"}
    return [
        *(Comparison(name, got[name], truth[name], _GRADIENT[torch.float32]) for name in sorted(names)),
        Comparison("other losses", got["loss"][rest], truth["loss"][rest].detach(), _SUMS),
    ]


def _views_weigh_nothing(kernels: ModuleType) -> list[Comparison]:
    """Two pairs of NT-Xent whose rows of weight 0 are too large: products of the two with each other, too."""
    z, scale = _rows(8, 3, torch.float32, 0).abs(), torch.tensor(2.0)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.5] * 2)
    rest = weight > 0
    z[~rest] = -3e38
    got = _nt_xent(kernels, z, z, scale, weight)
    few = z[rest]
    truth = _true_nt_xent(few, few, scale, weight[rest], torch.zeros(4, 4))
    return [
        Comparison("gradient", got["dz"][rest], truth["dz"], _GRADIENT[torch.float32]),
        Comparison("gradient of weight 0", got["dz"][~rest], torch.zeros(4, 3), 0),
        Comparison("dscale", got["dscale"], truth["dscale"], _GRADIENT[torch.float32]),
        Comparison("losses", got["loss"][rest], truth["loss"].detach(), _SUMS),
    ]


_SIZES = ((1, 1, 1), (5, 7, 3), (64, 64, 16), (70, 131, 33))
_SQUARE = ((1, 1, 1), (5, 5, 3), (131, 131, 33))
_EVEN = ((2, 2, 1), (6, 6, 3), (134, 134, 33))


def _sized(loss: str, sizes: tuple[tuple[int, int, int], ...], **options: Any) -> dict[str, Any]:
    return {
        f"{loss} {'x'.join(map(str, size))} {str(dtype)[6:]}": partial(
            _random, loss=loss, rows=size[0], keys=size[1], features=size[2], dtype=dtype, **options
        )
        for size in sizes
        for dtype in _GRADIENT
    }


def _at_the_ends(loss: str, rows: int, keys: int, **options: Any) -> dict[str, Any]:
    """Scales that are large and small."""
    problem = partial(_random, loss=loss, rows=rows, keys=keys, features=24, dtype=torch.float32, **options)
    return {
        f"{loss}, scale 100, positives close": partial(problem, scale=100.0, aligned=True),
        f"{loss}, scale 100, all far apart": partial(problem, scale=100.0, opposed=True),
        f"{loss}, scale 1e-4": partial(problem, scale=1e-4),
    }


def _configuration(
    kernels: ModuleType, loss: str, features: int, dtype: torch.dtype, needs: str = "dq, dscale"
) -> None:
    q, k = torch.empty(128, features, dtype=dtype), torch.empty(256, features, dtype=dtype)
    of_row, number, dk = torch.empty(256), torch.empty(()), torch.empty(256, features)
    sums = kernels.Sums(of_row, of_row, of_row, of_row)
    dq = torch.empty(128, features) if "dq" in needs else torch.empty(0)
    dscale = of_row if "dscale" in needs else torch.empty(0)
    if loss == "info_nce":
        if needs == "dq, dscale":
            kernels.softmax_forward(q, k, number, of_row, sums)
            kernels.info_nce_backward_keys(q, k, number, sums, dk)
        kernels.info_nce_backward_queries(q, k, number, sums, dq, dscale)
    elif loss == "siglip":
        kernels.siglip_forward(q, k, number, number, 0, of_row)
        kernels.siglip_backward_rows(q, k, number, number, 0, of_row, dq, dscale, of_row)
        kernels.siglip_backward_columns(q, k, number, number, 0, of_row, dk)
    elif loss == "nt_xent":
        kernels.softmax_forward(k, k, number, of_row, sums, 128)
        kernels.nt_xent_backward(k, number, sums, dk, dscale)
    else:
        kernels.clip_backward(q, q, number, sums, sums, dq, dscale)


_SHARED = "arithmetic.py"
_MUTANTS = {
    "keys past the last are loaded": Mutant("(rows[:, None] < count) & ", ""),
    "rows past the last are stored": Mutant("(rows[:, None] < count) & ", "", occurrence=1),
    "features past the last are loaded": Mutant(" & (columns[None, :] < features)", ""),
    "rows: int32 offsets": Mutant(".to(tl.int64) * stride", " * stride"),
    "gradients of queries past: int32 offsets": Mutant(
        "rows[:, None].to(tl.int64) * features", "rows[:, None] * features"
    ),
    "the sum is not rescaled": Mutant("total *= tl.exp(maximum - finite)", "total *= 1.0", file=_SHARED),
    "keys past the last count": Mutant("counts & ~own", "~own"),
    "the positive counts twice": Mutant("counts & ~own", "counts"),
    "info_nce, scale 100: the maximum is lost": Mutant(
        "tl.maximum(maximum, tl.max(logits, AXIS))", "tl.maximum(maximum, 0.0)", file=_SHARED
    ),
    "a row without negatives so far": Mutant(
        'finite = tl.where(larger == -float("inf"), 0.0, larger)', "finite = larger", file=_SHARED
    ),
    "info_nce, scale 100: cancellation": Mutant("log1p(others)", "tl.log(1.0 + others)", file=_SHARED),
    "losses of rows past the last": Mutant(
        "tl.store(Loss + row, loss, mask=row < rows)", "tl.store(Loss + row, loss)"
    ),
    "info_nce, scale 100, all: softmax past the last key": Mutant(
        "there = (column[None, :] < keys) & (share != 0.0)[:, None]",
        "there = (column[None, :] >= 0) & (share != 0.0)[:, None]",
    ),
    "info_nce, weight 0: it has slopes": Mutant(" & (share != 0.0)[:, None]", ""),
    "nt_xent, weight 0: its positive has a slope": Mutant(
        "mask=weight != 0.0, other=0.0) * weight", "mask=row < rows, other=0.0) * weight"
    ),
    "nt_xent, weight 0: its row has slopes": Mutant(
        "slopes = tl.where((share != 0.0)[:, None], slopes, 0.0)", "slopes = slopes"
    ),
    "nt_xent, weight 0: its column has slopes": Mutant(
        "of_columns = tl.where((column_share != 0.0)[None, :], of_columns, 0.0)", "of_columns = of_columns"
    ),
    "nt_xent, weight 0: 0 times infinity": Mutant("tl.where(slopes == 0.0, 0.0, products)", "products"),
    "info_nce: the positive has a softmax's slope": Mutant(
        "slopes = tl.where(own, of_own[:, None], slopes)", "slopes = slopes"
    ),
    "no upstream weight": Mutant("weight / tl.load(Sum", "1.0 / tl.load(Sum"),
    "no upstream weight of the positive": Mutant("other=0.0) * weight\n", "other=0.0)\n"),
    "info_nce, scale 100, all: the maximum is rounded": Mutant(
        'maximum = tl.load(Maximum + row, mask=row < rows, other=float("inf"))',
        'maximum = tl.load(Maximum + row, mask=row < rows, other=float("inf")) * (1.0 + 6e-8)',
    ),
    "dscale from the logits": Mutant("slopes * products, 1", "slopes * products * scale, 1"),
    "rows overlap between programs": Mutant("tl.program_id(0) * BLOCK_M", "tl.program_id(0) * (BLOCK_M - 1)"),
    "two programs write one block of dk": Mutant(
        "tl.program_id(0) * BLOCK_N", "tl.program_id(0) // 2 * BLOCK_N"
    ),
    "too few programs": Mutant(
        'triton.cdiv(k.shape[0], options["BLOCK_N"])', 'k.shape[0] // options["BLOCK_N"]'
    ),
    "many: a bfloat16 accumulator": Mutant(
        'dq += tl.dot(slopes.to(k.dtype), k, input_precision="ieee")',
        "dq = (dq + tl.dot(slopes.to(k.dtype), k)).to(k.dtype).to(tl.float32)",
    ),
    "info_nce, only dq: dscale though nobody asked": Mutant(
        "NEED_DSCALE=dscale.numel() > 0", "NEED_DSCALE=True"
    ),
    "info_nce, only dscale: dq though nobody asked": Mutant("NEED_DQ=dq.numel() > 0", "NEED_DQ=True"),
    "siglip, only dq: dbias though nobody asked": Mutant("NEED_DBIAS=dbias.numel() > 0", "NEED_DBIAS=True"),
    "siglip: the sign of the positive": Mutant(
        "tl.where(own, -1.0, 1.0)", "tl.where(own, 1.0, 1.0)", file=_SHARED
    ),
    "siglip: no bias": Mutant("(products * scale + bias)", "(products * scale)", file=_SHARED),
    "siglip, scale 100: overflow": Mutant(
        "tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))", "log1p(tl.exp(x))", file=_SHARED
    ),
    "siglip: columns past the last cost": Mutant("tl.where(counts, softplus(z), 0.0)", "softplus(z)"),
    "siglip: the slopes' sign is lost": Mutant("sign * logistic(z)", "logistic(z)"),
    "siglip: no upstream weight": Mutant("logistic(z) * share[:, None]", "logistic(z)"),
    "siglip, offset: the diagonal": Mutant("own = row + offset", "own = row"),
    "siglip, no pairs: the first ones": Mutant("k.shape[0] if offset is None", "0 if offset is None"),
    "siglip: dbias from the products": Mutant("tl.sum(slopes, 1)", "tl.sum(slopes * products, 1)"),
    "nt_xent: partners do not come round": Mutant("own = tl.where(own < keys, own, own - keys)", "own = own"),
    "nt_xent: a row counts among its columns": Mutant(
        "counts = counts & (row[:, None] != column[None, :])", "counts = counts"
    ),
    "nt_xent: a row's slope of itself": Mutant(
        "there = there & (row[:, None] != column[None, :])", "there = there"
    ),
    "nt_xent: dscale of both directions": Mutant("dscale *= 0.5", "dscale *= 1.0"),
    "nt_xent: the columns' softmaxes are left out": Mutant("slopes += of_columns", "slopes += 0.0"),
    "clip: the columns' positives are left out": Mutant(
        "of_own[:, None] + column_of_own[None, :]", "of_own[:, None]"
    ),
    "clip: the columns' slopes by the rows' maxima": Mutant(
        "tl.exp(logits - column_maximum[None, :])", "tl.exp(logits - maximum[:, None])"
    ),
    "clip: the columns' sums by the rows' count": Mutant(
        "ColumnMaximum, ColumnSum, ColumnMissing, ColumnWeight, column, keys, LOSS",
        "Maximum, Sum, Missing, Weight, column, keys, LOSS",
    ),
    "clip, scale 100, all: softmax past the last column": Mutant(
        "there = column[None, :] < keys\n", "there = column[None, :] >= 0\n"
    ),
    "keys apart: by the queries' stride": Mutant("q.stride(0), k.stride(0)", "q.stride(0), q.stride(0)"),
}

FAMILY = Family(
    name="pairwise (fused)",
    file="pairwise.py",
    problems={
        **_sized("info_nce", _SIZES),
        **_at_the_ends("info_nce", 40, 70),
        **_sized("siglip", _SIZES[::3], offset=0),
        **_at_the_ends("siglip", 40, 70, offset=0),
        "siglip, offset of columns": partial(
            _random, loss="siglip", rows=7, keys=20, features=3, dtype=torch.float32, offset=5
        ),
        "siglip, offset of rows": partial(
            _random, loss="siglip", rows=70, keys=7, features=3, dtype=torch.float32, offset=-64
        ),
        "siglip, no pairs": partial(
            _random, loss="siglip", rows=5, keys=7, features=3, dtype=torch.float32, offset=None
        ),
        **_sized("clip", _SQUARE),
        **_at_the_ends("clip", 40, 40),
        **_sized("nt_xent", _EVEN),
        **_at_the_ends("nt_xent", 40, 40),
        "many keys in bfloat16": partial(
            _random, loss="info_nce", rows=64, keys=1024, features=16, dtype=torch.bfloat16
        ),
        **{
            f"{loss}, only {wanted}": partial(_only, loss=loss, wanted=wanted)
            for loss in _LOSSES
            for wanted in ("dq", "dscale")
        },
        "siglip, only dbias": partial(_only, loss="siglip", wanted="dbias"),
        **{
            f"{loss}, weight 0": partial(_weighs_nothing, loss=loss, value=3e38)
            for loss in ("info_nce", "siglip")
        },
        "nt_xent, weight 0": _views_weigh_nothing,
        "keys apart in memory": _keys_apart,
    },
    configurations={
        **{
            f"{loss}, {features} features": partial(
                _configuration, loss=loss, features=features, dtype=torch.bfloat16
            )
            for loss in _LOSSES
            for features in (64, 128)
        },
        "info_nce, float16": partial(_configuration, loss="info_nce", features=128, dtype=torch.float16),
        **{
            f"info_nce, {needs} only": partial(
                _configuration, loss="info_nce", features=128, dtype=torch.bfloat16, needs=needs
            )
            for needs in ("dq", "dscale")
        },
    },
    mutants=_MUTANTS,
    multiplies=True,
    huge={
        "rows 2^26 elements apart": _far_apart,
        **{f"gradients of {of} past 2^31": partial(_far_gradients, of=of) for of in ("queries", "keys")},
    },
)
