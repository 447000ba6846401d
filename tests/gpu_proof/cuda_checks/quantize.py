"""csrc/cuda/quantize.cu: values rounded to a few bits in groups of neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.ops.frozen import cuda, reference

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
    virtual,
)

SIZES = [1, 3, 7, 8, 63, 64, 65, 255, 256, 257, 1000, 2300]
BITS = [8, 4, 2]


def of(bits: int, n: int) -> tuple[int, int]:
    """How many bytes of codes and how many numbers n values have."""
    return -(-n * bits // 8), -(-n // reference.GROUP[bits]) * (4 if bits == 2 else 2)


def quantized(run: Run, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    count, numbers = of(bits, x.numel())
    result = poisoned(count, dtype=torch.uint8), poisoned(numbers)
    with run(seed=x.numel()):
        cuda.quantize(x, *result, bits)
    return result


@check("quantize", bits=BITS, dtype=DTYPES)
def rounds_to_the_nearest_levels(run: Run, bits: int, dtype: torch.dtype) -> None:
    for n in SIZES:
        x = (torch.randn(n) * 3 + 1).to(dtype)
        codes, levels = quantized(run, x, bits)
        expected, truth = reference.quantize(x.double(), bits)
        close(levels, truth, 1e-6, 2e-6)
        # A value in the middle between two levels may go to either: both are as near.
        y, nearest = (reference.dequantize(c, truth, bits, n) for c in (codes, expected))
        close((y - x.double()).abs(), (nearest - x.double()).abs(), 0, 1e-5)
        assert ((y - nearest).abs() > 1e-5).sum() <= 0.01 * n
        if n * bits % 8:  # nothing but zeros after the last code
            assert codes[-1] >> n * bits % 8 == 0


@check("quantize", bits=BITS)
def groups_that_are_not_finite(run: Run, bits: int) -> None:
    size = reference.GROUP[bits]
    for value in (math.nan, math.inf, -math.inf):
        x = torch.randn(3 * size)
        x[size + 37] = value
        levels = quantized(run, x, bits)[1].view(3, -1)
        assert levels[1].isnan().all()
        assert levels[[0, 2]].isfinite().all()


@check("quantize", bits=BITS, value=[0.0, -1.5, 3e38, 1e-30, 1e-40])
def groups_of_one_value(run: Run, bits: int, value: float) -> None:
    x = torch.full((300,), value)
    codes, levels = quantized(run, x, bits)
    close(reference.dequantize(codes, levels.double(), bits, 300), x, 1e-6, 1e-42)


@check("quantize", bits=[8, 4])
def the_least_and_the_greatest_are_levels(run: Run, bits: int) -> None:
    x = torch.linspace(-1, 7, 200)
    codes, levels = quantized(run, x, bits)
    assert levels[0] == x[:64].min()
    codes = codes if bits == 8 else torch.stack([codes & 15, codes >> 4], 1).flatten()
    for group in range(3):
        part = codes[64 * group : 64 * group + 64]
        assert part[0] == 0
        assert part[-1] == 2**bits - 1


@check("quantize", bits=BITS)
def rounds_past_two_to_the_31(run: Run, bits: int) -> None:
    n, size = PAST_INT32, reference.GROUP[bits]
    count, numbers = of(bits, n)
    x, codes, levels = virtual(n, torch.float32), virtual(count, torch.uint8), virtual(numbers, torch.float32)
    a_block = 8 * size
    block = last_stride(n, a_block)[1]
    at = elements_of(block, n, a_block)
    x[at] = torch.randn(len(at))
    with run(blocks=[block]):
        cuda.quantize(x, codes, levels, bits)
    first = int(at[at >= 2**31 - a_block][0])
    assert first % size == 0
    end = min(first + a_block, n)
    part = codes[first * bits // 8 : -(-end * bits // 8)]
    each = 4 if bits == 2 else 2
    expected, truth = reference.quantize(x[first:end].double(), bits)
    close(levels[first // size * each : -(-end // size) * each], truth, 1e-6, 2e-6)
    y, nearest = (reference.dequantize(c, truth, bits, end - first) for c in (part, expected))
    close((y - x[first:end].double()).abs(), (nearest - x[first:end].double()).abs(), 0, 1e-5)


@check("dequantize", bits=BITS, dtype=DTYPES, product=["no", "separate", "in place"])
def gives_the_values_back(run: Run, bits: int, dtype: torch.dtype, product: str) -> None:
    for n in SIZES:
        count, numbers = of(bits, n)
        codes, levels = torch.randint(256, (count,), dtype=torch.uint8), torch.randn(numbers)
        levels[:1] = math.nan
        g = None if product == "no" else torch.randn(n).to(dtype)
        y = g.clone() if product == "in place" else poisoned(n, dtype=dtype)
        with run(seed=n):
            cuda.dequantize(codes, levels, y if product == "in place" else g, y, bits)
        truth = reference.dequantize(codes, levels.double(), bits, n)
        size = truth.abs() if bits == 2 else 1 + reference.dequantize(codes, levels.abs().double(), bits, n)
        if g is not None:
            truth, size = truth * g.double(), size * g.double().abs()
        close(y.isnan(), truth.isnan(), 0)
        assert ((y.double() - truth).abs() <= UNIT[dtype] * truth.abs() + 3e-7 * size + 3e-8)[
            ~truth.isnan()
        ].all()


@check("dequantize", bits=BITS)
def gives_back_past_two_to_the_31(run: Run, bits: int) -> None:
    n, size = PAST_INT32, reference.GROUP[bits]
    count, numbers = of(bits, n)
    codes, levels, y = (
        virtual(count, torch.uint8),
        virtual(numbers, torch.float32),
        virtual(n, torch.float32),
    )
    block = last_stride(n)[1]
    at = elements_of(block, n)
    at = at[at >= 2**31]
    codes[at * bits // 8] = torch.randint(256, (len(at),), dtype=torch.uint8)
    each = 4 if bits == 2 else 2
    for number in range(each):
        levels[at // size * each + number] = torch.randn(())
    with run(blocks=[block]):
        cuda.dequantize(codes, levels, None, y, bits)
    code = codes[at * bits // 8] >> (at * bits % 8).to(torch.uint8) & 2**bits - 1
    group = at // size * each
    truth = levels[group + code.long()] if bits == 2 else levels[group] + code.float() * levels[group + 1]
    close(y[at], truth, 1e-6, 1e-6)


@check("quantize", "dequantize", bits=BITS)
def nothing(run: Run, bits: int) -> None:
    x, codes = torch.empty(0), torch.empty(0, dtype=torch.uint8)
    with run():
        cuda.quantize(x, codes, x, bits)
        cuda.dequantize(codes, x, None, x, bits)
