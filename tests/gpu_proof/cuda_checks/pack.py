"""csrc/cuda/pack.cu: activations and their bits, and the gradients that bits give."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.ops.frozen import cuda
from thawkit.ops.frozen import reference as definition

from .registry import (
    DTYPES,
    PAST_INT32,
    SIZES,
    Run,
    check,
    elements_of,
    last_stride,
    numbers,
    poisoned,
    same,
    virtual,
)  # fmt: skip

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -1.5, 3.0, -3.0, 6.0, 0.1, 1e-40]
ACTIVATIONS = [
    ("relu", 0.0, math.inf),
    ("relu", -1.5, 6.0),
    ("relu", 0.1, 0.5),
    ("clamp", -1.5, 1.5),
    ("clamp", 0.1, math.inf),
    ("clamp", -math.inf, 0.1),
    ("threshold", 0.1, -3.0),
    ("leaky", 0.01, 0.0),
    ("hardsigmoid", 0.0, 0.0),
    ("abs", 0.0, 0.0),
]


def value(kind: str, x: Tensor, a: float, b: float) -> Tensor:
    """The activation of float64 x, as csrc/cpu/kernels.h says."""
    match kind:
        case "relu" | "clamp":
            return x.clamp(a, b)
        case "threshold":
            return torch.where(x <= a, b, x)
        case "leaky":
            return torch.where(x > 0, x, x * a)
        case "hardsigmoid":
            return (x + 3).clamp(0, 6) / 6
    return x.abs()


def bits(kind: str, x: Tensor, a: float, b: float) -> Tensor:
    """The bits of float64 x, in one plane or, for abs, two."""
    match kind:
        case "relu":
            return (x > a) & (x < b) if b < math.inf else ~(x <= a)
        case "clamp":
            return ((x > a) | (a == -math.inf)) & ((x < b) | (b == math.inf)) & ~x.isnan()
        case "threshold":
            return ~(x <= a)
        case "hardsigmoid":
            return (x > -3) & (x < 3)
    return x > 0


def planes(kind: str, x: Tensor, a: float, b: float) -> Tensor:
    packed = definition.pack(bits(kind, x, a, b))
    return torch.cat([packed, definition.pack(x < 0)]) if kind == "abs" else packed


def single(x: float) -> float:
    """The float32 that a kernel is given for a number."""
    return float(torch.tensor(x, dtype=torch.float32))


def expect_packed(kind: str, x: Tensor, y: Tensor | None, mask: Tensor, a: float, b: float) -> None:
    wide = x.double()
    a, b = single(a), single(b)
    if y is not None:
        truth = value(kind, wide, a, b).float()
        torch.testing.assert_close(y, truth.to(x.dtype), rtol=2 * 2**-23, atol=0, equal_nan=True)
    if kind == "clamp" or y is None:  # the bounds as the dtype has them
        a, b = (float(torch.tensor(bound).to(x.dtype)) for bound in (a, b))
    same(mask, planes(kind, wide, a, b))


@check("pack", activation=ACTIVATIONS, dtype=DTYPES)
def packs_values_and_bits(run: Run, activation: tuple, dtype: torch.dtype) -> None:
    kind, a, b = activation
    for n in SIZES:
        x, mask = (
            numbers(n, dtype=dtype, special=SPECIAL),
            poisoned(-(-n // 8) * (1 + (kind == "abs")), dtype=torch.uint8),
        )
        y = poisoned(n, dtype=dtype)
        with run(seed=n):
            cuda.pack(kind, x, y, mask, a, b)
        expect_packed(kind, x, y, mask, a, b)


@check("pack", activation=[ACTIVATIONS[0], ACTIVATIONS[1], ACTIVATIONS[2]], dtype=DTYPES)
def packs_bits_of_what_is_clamped_already(run: Run, activation: tuple, dtype: torch.dtype) -> None:
    kind, a, b = activation
    x, mask = numbers(300, dtype=dtype, special=SPECIAL), poisoned(38, dtype=torch.uint8)
    with run():
        cuda.pack(kind, x, None, mask, a, b)
    expect_packed(kind, x, None, mask, a, b)


@check("pack", activation=ACTIVATIONS[::3])
def packs_in_place_and_where_no_word_begins(run: Run, activation: tuple) -> None:
    kind, a, b = activation
    x = numbers(131, dtype=torch.float32, special=SPECIAL)
    whole = poisoned(17 * (1 + (kind == "abs")) + 2, dtype=torch.uint8)
    y, mask = x.clone(), whole[1:-1]
    with run():
        cuda.pack(kind, y, y, mask, a, b)
    expect_packed(kind, x, y, mask, a, b)
    assert whole[0] == whole[-1] == 255


@check("pack", n=SIZES)
def packs_booleans(run: Run, n: int) -> None:
    x, mask = torch.rand(n) < 0.5, poisoned(-(-n // 8), dtype=torch.uint8)
    with run(seed=n):
        cuda.pack("true", x, None, mask, 0.0, 0.0)
    same(mask, definition.pack(x))


@check("pack", kind=["relu", "abs", "true"])
def packs_past_two_to_the_31(run: Run, kind: str) -> None:
    n = PAST_INT32
    dtype = torch.bool if kind == "true" else torch.float32
    x, y = virtual(n, dtype), None if kind == "true" else virtual(n, dtype)
    plane = (n + 7) // 8
    mask = virtual(plane * (1 + (kind == "abs")), torch.uint8)
    blocks = last_stride(n)
    for block in blocks:
        x[elements_of(block, n)] = (torch.randn(len(elements_of(block, n))) > 0).to(dtype)
    with run(blocks=blocks):
        cuda.pack(kind, x, y, mask, 0.0, math.inf)
    for block in blocks:
        at = elements_of(block, n)
        same(mask[at // 8] >> (at % 8).to(torch.uint8) & 1, (x[at] > 0).to(torch.uint8))
        if kind == "abs":
            assert not mask[plane + at // 8].any()
        if y is not None:
            same(y[at], x[at])


GRADIENTS = {
    "pass": lambda g, bit, negative: torch.where(bit, g, 0.0),
    "part": lambda g, bit, negative: torch.where(bit, g * 0.75, 0.0),
    "two": lambda g, bit, negative: g * torch.where(bit, 0.75, -0.25),
    "sign": lambda g, bit, negative: g * (bit.double() - negative.double()),
}


@check("masked", kind=list(GRADIENTS), dtype=DTYPES, in_place=[False, True])
def masks_gradients(run: Run, kind: str, dtype: torch.dtype, in_place: bool) -> None:
    for n in SIZES:
        g = numbers(n, dtype=dtype, special=[math.nan, math.inf, -math.inf, 0.0])
        sign = torch.randint(-1, 2, (n,))
        mask = definition.pack(sign > 0)
        if kind == "sign":
            mask = torch.cat([mask, definition.pack(sign < 0)])
        dx = g.clone() if in_place else poisoned(n, dtype=dtype)
        with run(seed=n):
            cuda.masked(kind, dx if in_place else g, mask, dx, 0.75, -0.25)
        same(dx, GRADIENTS[kind](g.double(), sign > 0, sign < 0).to(dtype))


@check("masked", kind=["pass", "sign"])
def masks_past_two_to_the_31(run: Run, kind: str) -> None:
    n = PAST_INT32
    plane = (n + 7) // 8
    g, dx, mask = virtual(n, torch.float32), virtual(n, torch.float32), virtual(2 * plane, torch.uint8)
    blocks = last_stride(n)
    sign = {}
    for block in blocks:
        at = elements_of(block, n)
        g[at] = torch.randn(len(at))
        sign[block] = torch.zeros(len(at))
        for value_, offset in ((1, 0), (-1, plane)):
            drawn = torch.randint(256, (len(at) // 8 + 1,), dtype=torch.uint8)
            whole = at[::8] // 8
            mask[offset + whole] = drawn[: len(whole)] & (255 if offset == 0 else ~mask[whole])
            bit = mask[offset + at // 8] >> (at % 8).to(torch.uint8) & 1
            sign[block] += value_ * bit.float()
    with run(blocks=blocks):
        cuda.masked(kind, g, mask if kind == "sign" else mask[:plane], dx, 0.0, 0.0)
    for block in blocks:
        at = elements_of(block, n)
        factor = sign[block] if kind == "sign" else (sign[block] > 0).float()
        same(dx[at], torch.where(factor == 0, 0.0, g[at] * factor))


@check("pack", "masked")
def nothing(run: Run) -> None:
    x, mask = torch.empty(0), torch.empty(0, dtype=torch.uint8)
    with run():
        cuda.pack("relu", x, x, mask, 0.0, math.inf)
        cuda.masked("pass", x, mask, x, 1.0, 0.0)
