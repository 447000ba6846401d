"""The fused InfoNCE: no matrix of logits in memory."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, off, poisoned, virtual

# float32 sums; half precision rounds the slopes once more before the second product
_SUMS = 3e-6
_GRADIENT = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 8e-3}


def _rows(count: int, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, features, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _truth(
    q: Tensor, k: Tensor, scale: Tensor, weight: Tensor, rounding: Tensor | float = 0.0
) -> list[Tensor]:
    """What the kernels return, in float64; ``rounding`` is added to the products."""
    q, k, scale = (x.double().requires_grad_() for x in (q, k, scale))
    logits = scale * (q @ k.t() + rounding)
    loss = F.cross_entropy(logits, torch.arange(q.shape[0]), reduction="none")
    gradients = torch.autograd.grad((loss * weight.double()).sum(), (q, k, scale))
    others = logits.detach().clone()
    others.fill_diagonal_(-torch.inf)
    log_sum, maximum = logits.detach().logsumexp(1), logits.detach().amax(1)
    dq, dk, dscale = gradients
    missing, total = (others.logsumexp(1) - log_sum).exp(), (log_sum - maximum).exp()
    return [x.detach() for x in (loss, maximum, total, missing, dq / scale, dk / scale, dscale)]


def _run(kernels: ModuleType, q: Tensor, k: Tensor, scale: Tensor, weight: Tensor) -> list[Tensor]:
    *statistics, dscale = (poisoned(q.shape[0]) for _ in range(5))
    dq, dk = poisoned(*q.shape), poisoned(*k.shape)
    kernels.info_nce_forward(q, k, scale, *statistics)
    kernels.info_nce_backward_queries(q, k, scale, *statistics[1:], weight, dq, dscale)
    kernels.info_nce_backward_keys(q, k, scale, *statistics[1:], weight, dk)
    return [*statistics, dq, dk, dscale.sum()]


def _compared(kernels: ModuleType, q: Tensor, k: Tensor, scale: float) -> list[Comparison]:
    """Allow what float32 sums err by, and twice what the rounding of float32 products alone would cost.

    The exponentials take that rounding times the scale; float64 after it is the best that float32 can do.
    """
    number, weight = torch.tensor(scale), torch.linspace(0.5, 1.5, q.shape[0])
    got, truth = _run(kernels, q, k, number, weight), _truth(q, k, number, weight)
    rounding = (q.float() @ k.float().t()).double() - q.double() @ k.double().t()
    best = _truth(q, k, number, weight, rounding)
    names = "loss", "maximum", "sum", "missing", "dq", "dk", "dscale"
    sums = (*[_SUMS] * 4, *[_GRADIENT[q.dtype]] * 2, _GRADIENT[torch.float32])
    return [
        Comparison(name, x, y, allowed + 2 * off(z, y))
        for name, x, y, z, allowed in zip(names, got, truth, best, sums, strict=True)
    ]


def _random(
    kernels: ModuleType, rows: int, keys: int, features: int, dtype: torch.dtype, scale: float = 14.3,
    aligned: bool = False, opposed: bool = False,
) -> list[Comparison]:  # fmt: skip
    q, k = _rows(rows, features, dtype, 0), _rows(keys, features, dtype, 1)
    if aligned:
        k[:rows] = F.normalize(q.float() + 0.7 * k[:rows].float()).to(dtype)
    if opposed:
        q[:, 0], k[:, 0] = 5.0, -5.0
        q, k = F.normalize(q.float()).to(dtype), F.normalize(k.float()).to(dtype)
    return _compared(kernels, q, k, scale)


def _far_apart(kernels: ModuleType) -> list[Comparison]:
    q, k = (virtual(33, 16, 1 << 26, torch.bfloat16) for _ in range(2))
    q.copy_(_rows(33, 16, torch.bfloat16, 0))
    k.copy_(_rows(33, 16, torch.bfloat16, 1))
    return _compared(kernels, q, k, 3.0)


def _far_gradients(kernels: ModuleType, of: str) -> list[Comparison]:
    """Gradients that end past 2^31, of rows that are one and the same in memory; statistics are made up."""
    rows, features = (1 << 21) + 33, 1024
    one, few = _rows(1, features, torch.bfloat16, 0), _rows(5, features, torch.bfloat16, 1)
    many, gradient = one.expand(rows, -1), torch.empty(rows, features, dtype=torch.bfloat16)
    gradient[-1] = torch.nan
    scale = torch.tensor(2.0)
    products = few.double() @ one[0].double()
    truth = (2.0 * products).exp() @ few.double()  # no row among the last has a positive
    if of == "queries":
        zeros, ones = torch.zeros(rows), torch.ones(rows)
        dscale = torch.empty(0)
        kernels.info_nce_backward_queries(many, few, scale, zeros, ones, zeros, ones, gradient, dscale)
    else:
        zeros, ones = torch.zeros(5), torch.ones(5)
        kernels.info_nce_backward_keys(few, many, scale, zeros, ones, zeros, ones, gradient)
    return [Comparison(f"the last {of}' gradient", gradient[-1], truth, _GRADIENT[torch.bfloat16])]


def _keys_apart(kernels: ModuleType) -> list[Comparison]:
    """Keys that are columns of a wider matrix, so that their rows lie further apart than the queries' do."""
    q, k = _rows(40, 24, torch.float32, 0), poisoned(70, 31)[:, :24]
    k.copy_(_rows(70, 24, torch.float32, 1))
    return _compared(kernels, q, k, 3.0)


def _without_scale_gradient(kernels: ModuleType) -> list[Comparison]:
    """Outputs that nobody asked for have no memory: writing to it is out of bounds."""
    q, k = _rows(5, 3, torch.float32, 0), _rows(7, 3, torch.float32, 1)
    scale, weight = torch.tensor(2.0), torch.ones(5)
    statistics, dq = [poisoned(5) for _ in range(4)], poisoned(5, 3)
    kernels.info_nce_forward(q, k, scale, *statistics)
    kernels.info_nce_backward_queries(q, k, scale, *statistics[1:], weight, dq, torch.empty(0))
    return [Comparison("dq", dq, _truth(q, k, scale, weight)[4], 5e-6)]


def _frozen_queries(kernels: ModuleType) -> list[Comparison]:
    """The scale is learned and so are the keys: nobody asks for dq, which has no memory either."""
    q, k = _rows(5, 3, torch.float32, 0), _rows(7, 3, torch.float32, 1)
    scale, weight = torch.tensor(2.0), torch.ones(5)
    statistics, dscale, dk = [poisoned(5) for _ in range(4)], poisoned(5), poisoned(7, 3)
    kernels.info_nce_forward(q, k, scale, *statistics)
    kernels.info_nce_backward_queries(q, k, scale, *statistics[1:], weight, torch.empty(0), dscale)
    kernels.info_nce_backward_keys(q, k, scale, *statistics[1:], weight, dk)
    *_, true_dk, true_dscale = _truth(q, k, scale, weight)
    return [Comparison("dk", dk, true_dk, 5e-6), Comparison("dscale", dscale.sum(), true_dscale, 5e-6)]


_SIZES = ((1, 1, 1), (5, 7, 3), (64, 64, 16), (70, 131, 33))


def _configuration(kernels: ModuleType, features: int, dtype: torch.dtype, needs: str = "dq, dscale") -> None:
    q, k = torch.empty(128, features, dtype=dtype), torch.empty(256, features, dtype=dtype)
    rows, number = torch.empty(128), torch.empty(())
    kernels.info_nce_forward(q, k, number, rows, rows, rows, rows)
    dq = torch.empty(128, features) if "dq" in needs else torch.empty(0)
    dscale = rows if "dscale" in needs else torch.empty(0)
    kernels.info_nce_backward_queries(q, k, number, rows, rows, rows, rows, dq, dscale)
    kernels.info_nce_backward_keys(q, k, number, rows, rows, rows, rows, torch.empty(256, features))


_MUTANTS = {
    "keys past the last are loaded": Mutant("(rows[:, None] < count) & ", ""),
    "rows past the last are stored": Mutant("(rows[:, None] < count) & ", "", occurrence=1),
    "features past the last are loaded": Mutant(" & (columns[None, :] < features)", ""),
    "rows: int32 offsets": Mutant(".to(tl.int64) * stride", " * stride"),
    "gradients of queries past: int32 offsets": Mutant(
        "rows[:, None].to(tl.int64) * features", "rows[:, None] * features"
    ),
    "the sum is not rescaled": Mutant("total * tl.exp(maximum - finite) +", "total +"),
    "keys past the last count": Mutant("(column[None, :] < keys) & ~own", "~own"),
    "the positive counts twice": Mutant(" & ~own", ""),
    "scale 100: the maximum is lost": Mutant(
        "tl.maximum(maximum, tl.max(logits, 1))", "tl.maximum(maximum, 0.0)"
    ),
    "a row without negatives so far": Mutant('tl.where(larger == -float("inf"), 0.0, larger)', "larger"),
    "scale 100: cancellation": Mutant("log1p(others)", "tl.log(1.0 + others)"),
    "losses of rows past the last": Mutant(
        "tl.store(Loss + row, loss, mask=row < rows)", "tl.store(Loss + row, loss)"
    ),
    "scale 100, all: softmax past the last key": Mutant(
        "tl.where(column[None, :] < keys, tl.exp(products * scale - maximum[:, None]), 0.0)",
        "tl.exp(products * scale - maximum[:, None])",
    ),
    "the positive has a softmax's slope": Mutant("of_own[:, None], softmax", "softmax, softmax"),
    "no upstream weight": Mutant("weight / tl.load(Sum", "1.0 / tl.load(Sum"),
    "no upstream weight of the positive": Mutant("-missing * weight", "-missing"),
    "scale 100, all: the maximum is rounded": Mutant(
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
    "only dq: dscale though nobody asked": Mutant("NEED_DSCALE=dscale.numel() > 0", "NEED_DSCALE=True"),
    "only dscale and dk: dq though nobody asked": Mutant("NEED_DQ=dq.numel() > 0", "NEED_DQ=True"),
    "keys apart: by the queries' stride": Mutant("q.stride(0), k.stride(0)", "q.stride(0), q.stride(0)"),
}

FAMILY = Family(
    name="info_nce (fused)",
    file="pairwise.py",
    problems={
        **{
            f"{'x'.join(map(str, sizes))} {str(dtype)[6:]}": partial(
                _random, rows=sizes[0], keys=sizes[1], features=sizes[2], dtype=dtype
            )
            for sizes in _SIZES
            for dtype in _GRADIENT
        },
        "scale 100, positives close": partial(
            _random, rows=40, keys=70, features=24, dtype=torch.float32, scale=100.0, aligned=True
        ),
        "scale 100, all far apart": partial(
            _random, rows=40, keys=70, features=24, dtype=torch.float32, scale=100.0, opposed=True
        ),
        "scale 1e-4": partial(_random, rows=40, keys=70, features=24, dtype=torch.float32, scale=1e-4),
        "many keys in bfloat16": partial(_random, rows=64, keys=1024, features=16, dtype=torch.bfloat16),
        "only dq": _without_scale_gradient,
        "only dscale and dk": _frozen_queries,
        "keys apart in memory": _keys_apart,
    },
    configurations={
        **{
            f"{features} features {str(dtype)[6:]}": partial(_configuration, features=features, dtype=dtype)
            for features in (64, 128)
            for dtype in (torch.bfloat16, torch.float16)
        },
        "dq only": partial(_configuration, features=128, dtype=torch.bfloat16, needs="dq"),
        "dscale only": partial(_configuration, features=128, dtype=torch.bfloat16, needs="dscale"),
    },
    mutants=_MUTANTS,
    multiplies=True,
    huge={
        "rows 2^26 elements apart": _far_apart,
        **{f"gradients of {of} past 2^31": partial(_far_gradients, of=of) for of in ("queries", "keys")},
    },
)
