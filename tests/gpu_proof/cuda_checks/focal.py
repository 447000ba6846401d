"""csrc/cuda/focal.cu: the sigmoid focal loss and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thawkit.ops.focal import cuda, reference
from thawkit.ops.focal.sigmoid_operators import Options, _by_definition
from thawkit.ops.focal.weights import BLOCK, pack, weights

from .registry import (
    DTYPES,
    PAST_INT32,
    UNIT,
    Run,
    check,
    close,
    elements_of,
    last_stride,
    poisoned,
    same,
    virtual,
)

SIZES = [1, 3, 4, 5, 8, 9, 1023, 2050]
EXTREME = [0.0, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4]
# the fast exponential and logarithm, as good as PTX says, and the term's own roundings
ERROR = 4e-6


def options(gamma: float) -> Options:
    return Options(None, None, None, 0.25, 0.75, gamma, 1, 1, None, 0.0, False, "cuda")


def inputs(n: int, dtype: torch.dtype, soft: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * 3
    at = torch.randperm(n, generator=generator)[: len(EXTREME)]
    if n > 100:
        x[at] = torch.tensor(EXTREME)
    t = torch.rand(n, generator=generator)
    return x.to(dtype), (t if soft else (t < 0.3).float()).to(dtype)


def truth(x: Tensor, t: Tensor, gamma: float, upstream: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    wide = x.double().requires_grad_()
    loss = reference.sigmoid_focal(wide, t.double(), 0.25, 0.75, gamma)
    (grad,) = torch.autograd.grad((loss * upstream).sum(), wide)
    return loss.detach(), grad


@check("sigmoid_focal", gamma=[0.0, 1.0, 2.0, 1.5, 0.5], dtype=DTYPES, soft=[False, True])
def losses_and_gradients(run: Run, gamma: float, dtype: torch.dtype, soft: bool) -> None:
    for n in SIZES:
        x, t = inputs(n, dtype, soft, n)
        upstream = torch.randn(n).to(dtype)
        with run(seed=n):
            rows = cuda.rows(x, t, options(gamma))
            total, grad = cuda.total(x, t, options(gamma), 0.5, None, True)
            backward = cuda.backward(upstream, x, t, options(gamma))
        relative, least = ERROR + UNIT[dtype], 1e-7
        loss, slope = truth(x, t, gamma)
        close(rows, loss, relative, least)
        close(grad, 0.5 * slope, relative, least)
        close(total, 0.5 * rows.float().sum(), 1e-6)
        close(backward, truth(x, t, gamma, upstream.double())[1], relative, 4 * least)


@check("sigmoid_focal", gamma=[0.0, 2.0, 1.5])
def infinite_logits_and_nan(run: Run, gamma: float) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, math.inf, -math.inf])
    t = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    with run():
        got = cuda.rows(x, t, options(gamma))
    same(got.isnan(), reference.sigmoid_focal(x, t, 0.25, 0.75, gamma).isnan())


@check("sigmoid_focal", dtype=DTYPES, name=["x", "t", "loss", "grad", "upstream"])
def memory_that_no_vector_begins(run: Run, dtype: torch.dtype, name: str) -> None:
    n = 600
    given = dict(zip(("x", "t"), inputs(n, dtype, False), strict=True))
    given |= {"upstream": torch.randn(n).to(dtype)}
    given |= {out: poisoned(n, dtype=dtype) for out in ("loss", "grad")}
    shifted = poisoned(n + 1, dtype=dtype)[1:]
    given[name] = shifted.copy_(given[name])
    with run():
        memory = (given[each] for each in ("loss", "grad", "upstream"))
        cuda._run(given["x"], given["t"], options(2.0), *memory, 1.0)
    loss, slope = truth(given["x"], given["t"], 2.0, given["upstream"].double())
    close(given["loss"], loss, ERROR + UNIT[dtype], 1e-7)
    close(given["grad"], slope, ERROR + UNIT[dtype], 4e-7)


@check("sigmoid_focal", part=["rows", "backward"])
def past_two_to_the_31(run: Run, part: str) -> None:
    n = PAST_INT32
    x, t, out, upstream = (virtual(n, torch.float32) for _ in range(4))
    blocks = last_stride(n, 1024)
    for block in blocks:
        at = elements_of(block, n, 1024)
        x[at], t[at] = inputs(len(at), torch.float32, False, block)
        upstream[at] = torch.randn(len(at))
    with run(blocks=blocks):
        wanted = (out, None, None) if part == "rows" else (None, out, upstream)
        cuda._run(x, t, options(2.0), *wanted, 1.0)
    for block in blocks:
        at = elements_of(block, n, 1024)
        loss, slope = truth(x[at], t[at], 2.0, upstream[at].double())
        close(out[at], loss if part == "rows" else slope, ERROR, 4e-7)


def vectors(x: Tensor, **given: Any) -> dict[str, Any]:
    """The options for weights that the public function takes."""
    usual = {"alpha": 0.25, "alpha_mode": "balanced", "pos_weight": None, "weight": None}
    return pack(x, weights(x, **usual | given))._asdict()


OPTIONS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "class weights": lambda x: vectors(x, alpha=torch.linspace(0.1, 0.9, x.shape[1])),
    "pos_weight": lambda x: vectors(x, pos_weight=torch.linspace(0.5, 2, x.shape[1])),
    "a long period": lambda x: vectors(x, alpha=torch.rand(x.shape)),
    "row weights": lambda x: vectors(x, weight=torch.randn(len(x), 1)),
    "mask": lambda x: {"mask": torch.rand(x.shape) < 0.7},
    "ignored": lambda x: {"ignored": 1.0},
    "smoothing": lambda x: {"smoothing": 0.1},
    "separate": lambda x: {"separate": True},
    "separate, weighted": lambda x: {"separate": True, **vectors(x, pos_weight=1.5)},
}


@check(
    "sigmoid_focal", kind=list(OPTIONS), dtype=DTYPES, gamma=[2.0, 1.5], shape=[(23, 7), (5, 24), (1, 1030)],
    targets=["numbers", "indices"],
)  # fmt: skip
def losses_with_options(
    run: Run, kind: str, dtype: torch.dtype, gamma: float, shape: tuple, targets: str
) -> None:
    """What does not count may hold anything."""
    x = (torch.randn(shape) * 3).to(dtype)
    t: Tensor = (torch.rand(shape) < 0.3).to(dtype) if kind == "ignored" else torch.rand(shape).to(dtype)
    if targets == "indices":
        t = torch.arange(len(x)) % (x.shape[1] + 1) - 1
    o = options(gamma)._replace(**OPTIONS[kind](x))
    if o.mask is not None:
        x = x.masked_fill(~o.mask, math.nan)
    elif o.ignored is not None:
        x = x.masked_fill((t if t.dim() == 2 else t[:, None]) == o.ignored, math.nan)
    upstream = torch.randn(shape).to(dtype)
    with run(seed=len(kind)):
        loss, grad = cuda.rows(x, t, o), cuda.backward(upstream, x, t, o)
    wide = x.double().requires_grad_()
    true = _by_definition(wide, t, o)
    (slope,) = torch.autograd.grad((true * upstream.double()).sum(), wide)
    close(loss, true, ERROR + UNIT[dtype], 4e-7)
    close(grad, slope, ERROR + UNIT[dtype], 2e-6)


@check("sigmoid_focal", part=["rows", "mask", "classes"])
def options_past_two_to_the_31(run: Run, part: str) -> None:
    n, period = PAST_INT32, 11
    x, t, out, mask = (virtual(n, dtype) for dtype in (*[torch.float32] * 3, torch.uint8))
    row_weight = virtual(n // 3 + 1, torch.float32)
    block = last_stride(n, 1024)[1]
    at = elements_of(block, n, 1024)
    x[at], t[at] = inputs(len(at), torch.float32, True)
    row_weight[at // 3] = torch.rand(len(at)) + 0.5
    mask[at] = torch.randint(2, at.shape, dtype=torch.uint8)
    classes = torch.rand(3, period)
    repeated = classes.repeat(1, 60)[:, : period + BLOCK].contiguous()
    given: dict[str, Any] = {
        "rows": {"row_weight": row_weight, "row": 3},
        "mask": {"mask": mask},
        "classes": {"classes": repeated, "period": period},
    }[part]
    with run(blocks=[block]):
        cuda._run(x, t, options(2.0)._replace(**given), out, None, None, 1.0)
    weighs = classes[:, at % period].double() if part == "classes" else (0.25, 0.75, 1.0)
    loss = reference.sigmoid_focal(x[at].double(), t[at].double(), *weighs[:2], 2.0, weighs[2])
    if part != "classes":
        loss = loss * (row_weight[at // 3] if part == "rows" else mask[at]).double()
    close(out[at], loss, ERROR, 4e-7)


@check("sigmoid_focal")
def nothing(run: Run) -> None:
    x = torch.empty(0, 7)
    with run():
        assert cuda.rows(x, x, options(2.0)).shape == (0, 7)
