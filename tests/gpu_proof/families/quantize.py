"""Values rounded to 8, 4 or 2 bits in groups of neighbours: bytes and numbers of the reference, bit for bit."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned
from thawkit.ops.frozen import reference

_DTYPES = {torch.float32: 3e-7, torch.float16: 6e-4, torch.bfloat16: 5e-3}
_BITS = 8, 4, 2
_SIZES = 1, 7, 64, 65, 257, 2048, 4700


def _sizes(bits: int, count: int) -> tuple[int, int]:
    """How many bytes of codes and how many numbers there are."""
    return -(-count * bits // 8), -(-count // reference.GROUP[bits]) * (4 if bits == 2 else 2)


def _values(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + count)
    return (torch.randn(count, generator=generator) * 3 + 1).to(dtype)


def _eighths(count: int) -> Tensor:
    """Numbers whose means over 256 of them are exact in float32, in whatever order they are added up."""
    return torch.randint(-32, 33, (count,), generator=torch.Generator().manual_seed(count)) / 8


def _run(kernels: ModuleType, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    count, numbers = _sizes(bits, x.numel())
    result = poisoned(count, dtype=torch.uint8), poisoned(numbers)
    kernels.quantize(x, *result, bits)
    return result


def _exact(kernels: ModuleType, x: Tensor, bits: int) -> list[Comparison]:
    codes, numbers = _run(kernels, x, bits)
    of_codes, of_numbers = reference.quantize(x.float(), bits)
    return [Comparison("codes", codes, of_codes, 0.0), Comparison("numbers", numbers, of_numbers, 0.0)]


def _rounded(kernels: ModuleType, bits: int, dtype: torch.dtype) -> list[Comparison]:
    return [c for count in _SIZES for c in _exact(kernels, _values(count, dtype), bits)]


def _means(kernels: ModuleType, count: int, dtype: torch.dtype) -> list[Comparison]:
    """Sums of a last group that is not whole depend on the order: its numbers are close, the rest are equal."""
    x = _values(count, dtype)
    codes, numbers = _run(kernels, x, 2)
    of_codes, of_numbers = reference.quantize(x.double(), 2)
    y, nearest = (reference.dequantize(c, of_numbers, 2, count) for c in (codes, of_codes))
    # what lies in the middle between two levels may go to either: both are as near
    error, least = (y - x.double()).abs(), (nearest - x.double()).abs()
    return [
        Comparison("numbers", numbers, of_numbers, 2e-6),
        Comparison("distances", error, least, 1e-5),
        Comparison("bits after the last code", codes[-1:] >> (2 * count - 1) % 8 + 1, torch.zeros(1), 0.0),
    ]


def _not_finite(kernels: ModuleType, bits: int, value: float) -> list[Comparison]:
    size = reference.GROUP[bits]
    x = _eighths(3 * size)
    x[size + 37] = value
    codes, numbers = _run(kernels, x, bits)
    of_codes, of_numbers = reference.quantize(x, bits)
    each = numbers.numel() // 3
    of_numbers[each : 2 * each] = math.nan
    return [
        Comparison("numbers", numbers, of_numbers, 0.0),
        *(
            Comparison(f"codes {part}", codes.view(3, -1)[part], of_codes.view(3, -1)[part], 0.0)
            for part in (0, 2)
        ),
    ]


def _one_value(kernels: ModuleType, bits: int) -> list[Comparison]:
    compared = []
    for value in (0.0, -1.5, 3e38, 1e-30, 1e-40):
        x = torch.full((300,), value)
        codes, numbers = _run(kernels, x, bits)
        y = reference.dequantize(codes, numbers.double(), bits, 300)
        rounding = 1e-2 if value == 1e-40 else 1e-6  # a 256th of it has seven bits
        compared.append(Comparison(f"values of {value}", y, x, rounding))
    return compared


def _ends(kernels: ModuleType, bits: int) -> list[Comparison]:
    """The least and the greatest value have the first and the last code."""
    x = torch.linspace(-1, 7, 192)
    codes, numbers = _run(kernels, x, bits)
    codes = codes if bits == 8 else torch.stack([codes & 15, codes >> 4], 1).flatten()
    return [
        Comparison("first", codes[::64], torch.zeros(3), 0.0),
        Comparison("last", codes[63::64], torch.full((3,), 2.0**bits - 1), 0.0),
        Comparison("lowest", numbers[::2], x[::64], 0.0),
    ]


def _given_back(kernels: ModuleType, bits: int, dtype: torch.dtype, product: str) -> list[Comparison]:
    compared = []
    for count in _SIZES:
        of_codes, of_numbers = _sizes(bits, count)
        generator = torch.Generator().manual_seed(count)
        codes = torch.randint(256, (of_codes,), dtype=torch.uint8, generator=generator)
        numbers = torch.rand(of_numbers, generator=generator)
        g = _values(count, dtype)
        y = g.clone() if product == "in place" else poisoned(count, dtype=dtype)
        given = {"no": None, "apart": g, "in place": y}[product]
        kernels.dequantize(codes, numbers, given, y, bits)
        truth = reference.dequantize(codes, numbers.double(), bits, count)
        if given is not None:
            truth = truth * g.double()
        compared.append(Comparison(f"{count} values", y, truth, _DTYPES[dtype]))
    return compared


def _far(kernels: ModuleType, bits: int) -> list[Comparison]:
    count, size = (1 << 31) + 777, reference.GROUP[bits]
    of_codes, of_numbers = _sizes(bits, count)
    x, y = (torch.empty(count, dtype=torch.bfloat16) for _ in range(2))
    codes, numbers = torch.empty(of_codes, dtype=torch.uint8), torch.empty(of_numbers)
    first = count - count % size - size  # of the last whole group and the rest
    x[first:] = _eighths(count - first).bfloat16()
    each = of_numbers // -(-count // size)
    at, to = slice(first * bits // 8, None), slice(first // size * each, None)
    codes[at], numbers[to], y[first:] = 0xA5, math.nan, math.nan
    kernels.quantize(x, codes, numbers, bits)
    truth, levels = reference.quantize(x[first:].float(), bits)
    tolerance = 2e-6 if bits == 2 else 0.0  # the last group is not whole
    compared = [
        Comparison("the last codes", codes[at][: size * bits // 8], truth[: size * bits // 8], 0.0),
        Comparison("the last numbers", numbers[to], levels, tolerance),
    ]
    kernels.dequantize(codes, numbers, None, y, bits)
    values = reference.dequantize(codes[at], numbers[to].double(), bits, count - first)
    return [*compared, Comparison("the last values", y[first:], values.bfloat16(), 5e-3)]


def _configuration(kernels: ModuleType, bits: int, dtype: torch.dtype) -> None:
    count = 1 << 14
    of_codes, of_numbers = _sizes(bits, count)
    x = torch.empty(count, dtype=dtype)
    codes, numbers = torch.empty(of_codes, dtype=torch.uint8), torch.empty(of_numbers)
    kernels.quantize(x, codes, numbers, bits)
    kernels.dequantize(codes, numbers, None, x, bits)
    kernels.dequantize(codes, numbers, x, x, bits)


_MUTANTS = {
    "rounded: values past the last count": Mutant("tl.where(inside, x, float(\"inf\"))", "x"),
    "rounded: codes past the last": Mutant("tl.where(inside, codes, 0)", "codes"),
    "rounded: bytes past the last": Mutant("tl.sum(shifted, 1).to(tl.uint8), mask=byte < bytes", "tl.sum(shifted, 1).to(tl.uint8)"),
    "rounded: numbers of groups past the last": Mutant(
        "tl.store(Numbers + group * 2 + 1, step, mask=known)", "tl.store(Numbers + group * 2 + 1, step)"
    ),
    "rounded: cut off instead of rounded": Mutant("((at + _ROUND) - _ROUND).to", "at.to"),
    "rounded: a half upwards": Mutant("((at + _ROUND) - _ROUND).to", "(at + 0.5).to"),
    "rounded: codes the other way round": Mutant("(tl.arange(0, each) * BITS)", "((each - 1 - tl.arange(0, each)) * BITS)"),
    "rounded: one level too many": Mutant("2**BITS - 1\n    lowest", "2**BITS\n    lowest"),
    "one: the inverse of no distance": Mutant("tl.where(one_level, 0.0, per_step)", "per_step * (1.0 / step) * step"),
    "groups: not finite unnoticed": Mutant("lowest + strange, step + strange", "lowest, step"),
    "groups: means that are not finite unnoticed": Mutant("mean) + strange", "mean)"),
    "means: thresholds of another width": Mutant("1.2304", "1.25"),
    "means: a part's mean over the whole": Mutant("tl.div_rn(_sum(part, here),", "tl.div_rn(_sum(part, inside),"),
    "means: an empty part has no level": Mutant("tl.where(share > 0.0, value, mean)", "value"),
    "means: the last group's size": Mutant("tl.minimum(tl.maximum(count - group * GROUP, 1), GROUP)", "(group * 0 + GROUP)"),
    "past: int32 offsets": Mutant("WIDE=count > _WIDE", "WIDE=False"),
    "past: int32 offsets of values": Mutant("WIDE=count > _WIDE", "WIDE=False", occurrence=1),
    "values: the wrong byte": Mutant("Codes + at // each", "Codes + at"),
    "values: the wrong bits of it": Mutant("(within % each * BITS)", "((each - 1 - within % each) * BITS)"),
    "values: no lowest": Mutant("* step[:, None] + lowest[:, None]", "* step[:, None]"),
    "values: without the product": Mutant("PRODUCT=g is not None", "PRODUCT=False"),
    "values: past the last": Mutant("tl.store(Y + at, y, mask=inside)", "tl.store(Y + at, y)"),
    "values: too few programs": Mutant("_dequantize[(triton.cdiv(count, _BLOCK),)]", "_dequantize[(max(1, count // _BLOCK),)]"),
    "rounded: too few programs": Mutant("_quantize[(triton.cdiv(count, _BLOCK),)]", "_quantize[(max(1, count // _BLOCK),)]"),
}  # fmt: skip

FAMILY = Family(
    name="frozen quantize",
    file="quantize.py",
    problems={
        **{
            f"rounded to {bits} bits, {str(dtype)[6:]}": partial(_rounded, bits=bits, dtype=dtype)
            for bits in (8, 4)
            for dtype in _DTYPES
        },
        "rounded halves": lambda kernels: _exact(kernels, torch.arange(256) / 2, 8),
        **{f"means of {count}, equal": partial(lambda kernels, count: _exact(kernels, _eighths(count), 2), count=count) for count in (256, 4096)},
        **{
            f"means of {count}, {str(dtype)[6:]}": partial(_means, count=count, dtype=dtype)
            for count, dtype in ((1, torch.float32), (7, torch.float16), (257, torch.bfloat16), (4700, torch.float32))
        },
        **{
            f"groups of {bits} bits with {value}": partial(_not_finite, bits=bits, value=value)
            for bits in _BITS
            for value in (math.nan, math.inf, -math.inf)
        },
        **{f"one value, {bits} bits": partial(_one_value, bits=bits) for bits in _BITS},
        **{f"ends of {bits} bits": partial(_ends, bits=bits) for bits in (8, 4)},
        **{
            f"values of {bits} bits, {str(dtype)[6:]}, product {product}": partial(
                _given_back, bits=bits, dtype=dtype, product=product
            )
            for bits in _BITS
            for dtype in _DTYPES
            for product in ("no", "apart", "in place")
        },
    },
    configurations={
        f"{bits} bits {str(dtype)[6:]}": partial(_configuration, bits=bits, dtype=dtype)
        for bits in _BITS
        for dtype in (torch.float32, torch.bfloat16)
    },
    mutants=_MUTANTS,
    scattered=frozenset({"_dequantize"}),
    huge={f"past 2^31, {bits} bits": partial(_far, bits=bits) for bits in _BITS},
)  # fmt: skip
