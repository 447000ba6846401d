"""Gradients with their sums by channel, and what is scaled by channel.

Most numbers here are few quarters, so that products and sums are exact in float32 and nothing may differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned
from thawkit.ops.frozen import reference

_DTYPES = torch.float32, torch.float16, torch.bfloat16
Layout = tuple[int, int, int]

# outer, channels, inner
_LAYOUTS: tuple[Layout, ...] = (
    (1, 1, 1),
    (3, 5, 7),
    (9, 3, 300),
    (9, 2, 2500),
    (40, 33, 1),
    (9, 70, 1),
    (600, 3, 1),
)
_CLAMPS: dict[str, tuple[float, float] | None] = {"no clamp": None, "relu": (0.0, math.inf), "between": (-0.5, 0.75)}  # fmt: skip


def _quarters(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)) / 4).to(dtype)


def _bits(layout: Layout) -> tuple[Tensor, Tensor]:
    bits = torch.rand(layout, generator=torch.Generator().manual_seed(7)) < 0.6
    return bits, reference.pack(bits)


def _by_channel(numbers: Tensor) -> Tensor:
    return numbers.double().view(-1, 1)


def _clamped(x: Tensor, clamp: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Values that are already of their dtype, clamped, and the bits."""
    lower, upper = clamp or (-math.inf, math.inf)
    bits = ~(x <= lower) if upper == math.inf else (x > lower) & (x < upper)
    return x.clamp(lower, upper), reference.pack(bits)


def _affine(
    kernels: ModuleType, layout: Layout, dtype: torch.dtype, clamp: str, added: str = "nothing", special: bool = False
) -> list[Comparison]:  # fmt: skip
    x, other = _quarters(*layout, seed=0, dtype=dtype), _quarters(*layout, seed=1, dtype=dtype)
    if special:
        x.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf]).to(dtype)
    scale, shift = _quarters(layout[1], seed=2), _quarters(layout[1], seed=3)
    truth = x.double() * _by_channel(scale) + _by_channel(shift)
    if added != "nothing":
        truth += other.double()
    bounds = _CLAMPS[clamp]
    values, bits = _clamped(truth.to(dtype), bounds)
    y = other.clone() if added == "in place" else poisoned(*layout, dtype=dtype)
    mask = None if bounds is None else poisoned(bits.numel(), dtype=torch.uint8)
    given = {"nothing": None, "in place": y, "apart": other}[added]
    kernels.channel_affine(x, given, y, mask, layout, scale, shift, *(bounds or (0.0, 0.0)))
    compared = [Comparison("values", y, values, 0.0)]
    return compared if mask is None else [*compared, Comparison("bits", mask, bits, 0.0)]


def _onto_a_bound(kernels: ModuleType) -> list[Comparison]:
    """Numbers that rounding brings to a bound are at it."""
    x, shift = torch.zeros(1, 3, 5, dtype=torch.bfloat16), torch.tensor([0.7499, 0.7501, -0.4999])
    values, bits = _clamped(shift.bfloat16().view(1, 3, 1).expand(1, 3, 5).contiguous(), (-0.5, 0.75))
    y, mask = poisoned(1, 3, 5, dtype=torch.bfloat16), poisoned(2, dtype=torch.uint8)
    kernels.channel_affine(x, None, y, mask, (1, 3, 5), torch.ones(3), shift, -0.5, 0.75)
    return [Comparison("values", y, values, 0.0), Comparison("bits", mask, bits, 0.0)]


def _sum(
    kernels: ModuleType, layout: Layout, dtype: torch.dtype, kind: str, masked: bool = True
) -> list[Comparison]:
    g = _quarters(*layout, seed=0, dtype=dtype)
    bits, mask = _bits(layout)
    if not masked:
        bits = torch.ones_like(bits)
    factors = _quarters(layout[1], seed=1) if kind == "factors" else None
    no = -0.25 if factors is None else _by_channel(factors)
    truth = g.double().where(bits, 0) if kind == "pass" else g.double() * torch.where(bits, 0.75, no)
    compared = []
    for wanted in ("gradient and sums", "sums", "gradient"):
        dx = poisoned(*layout, dtype=dtype) if "gradient" in wanted else None
        parts = poisoned(kernels.sum_parts(layout), layout[1]) if "sums" in wanted else None
        name = "pass" if kind == "pass" else "two"
        kernels.channel_sum(name, g, mask if masked else None, dx, layout, 0.75, -0.25, factors, parts)
        if dx is not None:
            compared.append(Comparison("gradient", dx, truth.to(dtype), 0.0))
        if parts is not None:
            compared.append(Comparison("sums", parts.sum(0), truth.sum((0, 2)), 0.0))
    return compared


def _in_place(kernels: ModuleType) -> list[Comparison]:
    layout = 5, 37, 1
    g = _quarters(*layout, seed=0)
    (bits, mask), dx, parts = _bits(layout), g.clone(), poisoned(1, 37)
    kernels.channel_sum("pass", dx, mask, dx, layout, 0.0, 0.0, None, parts)
    truth = g.where(bits, 0)
    return [Comparison("gradient", dx, truth, 0.0), Comparison("sums", parts[0], truth.sum((0, 2)), 0.0)]


def _many_equal(kernels: ModuleType, layout: Layout) -> list[Comparison]:
    """Rounding adds up where sums are long: they are not to be."""
    g = torch.full(layout, 0.1)
    parts = poisoned(2, kernels.sum_parts(layout), layout[1])
    one = torch.ones(layout[1])
    kernels.channel_affine_backward(g, g, None, None, None, parts, layout, one, 0 * one)
    truth = torch.stack([g.double().sum((0, 2)), g.double().square().sum((0, 2))])
    return [Comparison("sums", parts.sum(1), truth, 3e-7)]


def _not_finite(kernels: ModuleType, value: float) -> list[Comparison]:
    layout = 70, 3, 1
    g, parts = torch.ones(layout), poisoned(1, 1, 3)
    g[12, 1] = value
    kernels.channel_affine_backward(g, None, None, None, None, parts, layout, torch.ones(3), torch.zeros(3))
    return [Comparison("sums", parts[0, 0], g.sum((0, 2)), 0.0)]


def _backward(
    kernels: ModuleType, layout: Layout, dtype: torch.dtype, masked: bool = True, with_x: bool = True
) -> list[Comparison]:
    g, x = _quarters(*layout, seed=0, dtype=dtype), _quarters(*layout, seed=1, dtype=dtype)
    bits, mask = _bits(layout)
    if not masked:
        bits = torch.ones_like(bits)
    x[~bits] = math.inf
    scale, mean = _quarters(layout[1], seed=2), _quarters(layout[1], seed=3)
    d = g.double().where(bits, 0)
    product = (g.double() * (x.double() - _by_channel(mean))).where(bits, 0)
    truths = [d.sum((0, 2)), product.sum((0, 2))][: 1 + with_x]
    compared = []
    for wanted in ("both", "dx", "dother", "sums alone"):
        dx = poisoned(*layout, dtype=dtype) if wanted in ("both", "dx") else None
        dother = poisoned(*layout, dtype=dtype) if wanted in ("both", "dother") else None
        parts = poisoned(len(truths), kernels.sum_parts(layout), layout[1])
        kernels.channel_affine_backward(
            g, x if with_x else None, mask if masked else None, dx, dother, parts, layout, scale, mean
        )
        compared.append(Comparison("sums", parts.sum(1), torch.stack(truths), 0.0))
        if dx is not None:
            compared.append(Comparison("dx", dx, (d * _by_channel(scale)).to(dtype), 0.0))
        if dother is not None:
            compared.append(Comparison("dother", dother, d.to(dtype), 0.0))
    return compared


def _empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.empty(size, dtype=dtype) for size in sizes]


def _far(kernels: ModuleType, layout: Layout) -> list[Comparison]:
    """Two rows, the second of which ends past 2^31; of the last elements of both."""
    _, channels, inner = layout
    n, row = math.prod(layout), channels * inner
    g, x, dx, dother, y = (torch.empty(n, dtype=torch.bfloat16) for _ in range(5))
    mask, scale, mean = torch.empty(n // 8, dtype=torch.uint8), torch.empty(channels), torch.empty(channels)
    parts = torch.empty(2, kernels.sum_parts(layout), channels)
    scale[-8:], mean[-8:] = 2.0, 1.0
    ends = slice(row - 8, row), slice(n - 8, n)
    for seed, end in enumerate(ends):
        g[end], x[end] = _quarters(2, 8, seed=seed).bfloat16()
        mask[end.start // 8] = 0xFF
    kernels.channel_affine_backward(g, x, mask, dx, dother, parts, layout, scale, mean)
    last = ends[1]
    compared = [
        Comparison("the last dx", dx[last], 2 * g[last], 0.0),
        Comparison("the last dother", dother[last], g[last], 0.0),
    ]
    if inner == 1:
        both = [torch.stack([t[end].float() for end in ends]) for t in (g, x)]
        sums = torch.stack([both[0].sum(0), (both[0] * (both[1] - 1)).sum(0)])
        compared.append(Comparison("the last sums", parts[:, 0, -8:], sums, 0.0))
    y[last], mask[-1] = math.nan, 0xA5
    kernels.channel_affine(x, None, y, mask, layout, scale, mean, 0.0, math.inf)
    values, bits = _clamped(2 * x[last] + 1, (0.0, math.inf))
    return [
        *compared,
        Comparison("the last values", y[last], values, 0.0),
        Comparison("the last bits", mask[-1:], bits, 0.0),
    ]


def _configuration(kernels: ModuleType, layout: Layout, dtype: torch.dtype) -> None:
    x, mask = torch.empty(layout, dtype=dtype), torch.empty(math.prod(layout) // 8, dtype=torch.uint8)
    numbers = torch.empty(layout[1])
    parts = torch.empty(2, kernels.sum_parts(layout), layout[1])
    kernels.channel_affine(x, None, x, None, layout, numbers, numbers, 0.0, 0.0)
    kernels.channel_affine(x, x, x, mask, layout, numbers, numbers, 0.0, 6.0)
    kernels.channel_sum("pass", x, mask, x, layout, 1.0, 0.0, None, parts[0])
    kernels.channel_sum("pass", x, None, None, layout, 1.0, 0.0, None, parts[0])
    kernels.channel_sum("two", x, mask, x, layout, 1.0, 0.0, numbers, None)
    kernels.channel_affine_backward(x, x, mask, x, x, parts, layout, numbers, numbers)
    kernels.channel_affine_backward(x, None, mask, x, None, parts, layout, numbers, numbers)


def _named(layout: Sequence[int]) -> str:
    return "x".join(map(str, layout))


_MUTANTS = {
    "affine: values past the last are stored": Mutant(
        "tl.store(Y + at, value, mask=inside)", "tl.store(Y + at, value)"
    ),
    "affine: the wrong channel": Mutant("at // inner % channels", "at % channels"),
    "affine: no shift": Mutant("value += tl.load(Shift", "value += 0.0 * tl.load(Shift"),
    "affine: not what is added": Mutant("value += tl.load(Other", "value -= tl.load(Other"),
    "affine: bits before rounding": Mutant(
        "value.to(Y.dtype.element_ty).to(tl.float32)", "value.to(tl.float32)"
    ),
    "affine: bits past the last": Mutant("inside & bits_of", "bits_of"),
    "affine: no upper bound": Mutant("BOUNDED=upper < math.inf", "BOUNDED=False"),
    "affine: not clamped": Mutant("value = clamped(value, lower, upper)", "value = value"),
    "affine: too few programs": Mutant(
        "_affine[(triton.cdiv(count, _BLOCK),)]", "_affine[(max(1, count // _BLOCK),)]"
    ),
    "past: int32 offsets of what is scaled": Mutant("WIDE=count > _WIDE", "WIDE=False"),
    "past: int32 offsets of gradients": Mutant("WIDE=math.prod(layout) > _WIDE", "WIDE=False"),
    "backward: 0 times infinity": Mutant("tl.where(bits, d * (x - mean), 0.0)", "d * (x - mean)"),
    "backward: no mean": Mutant("d * (x - mean)", "d * x"),
    "backward: dx without the scale": Mutant("tl.store(DX + at, d * scale", "tl.store(DX + at, d"),
    "backward: dother scaled": Mutant("tl.store(DOther + at, d,", "tl.store(DOther + at, d * scale,"),
    "backward: rows past the last": Mutant("(row[:, None] < outer) & known[None, :]", "known[None, :]"),
    "backward: columns past the last": Mutant(
        "(row[:, None] < outer) & known[None, :]", "(row[:, None] < outer)"
    ),
    "backward: the second sum over the first": Mutant("(parts + slot) * channels", "slot * channels"),
    "backward: parts in one place": Mutant("part * blocks + program % blocks", "part * blocks"),
    "backward 9x2x2500: parts of one row in those of the next": Mutant(
        "part * blocks + program % blocks", "part + program % blocks"
    ),
    "backward: the channel of another block": Mutant(
        "channel = part % channels", "channel = part // channels"
    ),
    "backward: one step too few": Mutant("for step in range(STEPS)", "for step in range(STEPS - 1)"),
    "backward: too few groups": Mutant(
        "triton.cdiv(outer, block_r * _STEPS)", "max(1, outer // (block_r * _STEPS))"
    ),
    "sum 40x33: sums of channels past the last": Mutant(
        "tl.store(Parts + channel, tl.sum(sums, 0), mask=known)", "tl.store(Parts + channel, tl.sum(sums, 0))"
    ),
    "sum: the last tile alone": Mutant("total += d", "total = d"),
    "sum: factors for bits that are set": Mutant("tl.where(bits, yes, scale)", "tl.where(bits, scale, yes)"),
    "sum: yes for no": Mutant("tl.where(bits, yes, no)", "tl.where(bits, no, yes)"),
    "sum: bits are not looked at": Mutant("d = tl.where(bits, d, 0.0)", "d = d"),
}

FAMILY = Family(
    name="frozen channels",
    file="channels.py",
    problems={
        **{
            f"affine {_named(layout)} {str(dtype)[6:]}, {clamp}": partial(_affine, layout=layout, dtype=dtype, clamp=clamp)
            for layout in _LAYOUTS
            for dtype, clamp in zip(_DTYPES, _CLAMPS, strict=True)
        },
        **{
            f"affine {str(dtype)[6:]}, {clamp}, added {added}": partial(
                _affine, layout=(3, 5, 7), dtype=dtype, clamp=clamp, added=added, special=True
            )
            for dtype in _DTYPES
            for clamp in _CLAMPS
            for added in ("nothing", "apart", "in place")
        },
        **{
            f"sum {_named(layout)} {str(dtype)[6:]}, {kind}": partial(_sum, layout=layout, dtype=dtype, kind=kind)
            for layout in _LAYOUTS
            for dtype, kind in zip(_DTYPES, ("pass", "two", "factors"), strict=True)
        },
        "affine, rounded to a bound": _onto_a_bound,
        "sum without a mask": partial(_sum, layout=(3, 5, 7), dtype=torch.float32, kind="pass", masked=False),
        "sum in place": _in_place,
        **{f"backward of {value}": partial(_not_finite, value=value) for value in (math.inf, -math.inf, math.nan)},
        **{f"backward, equal numbers, {_named(layout)}": partial(_many_equal, layout=layout) for layout in ((60_000, 1, 1), (3, 1, 20_000))},
        **{
            f"backward {_named(layout)} {str(dtype)[6:]}": partial(_backward, layout=layout, dtype=dtype)
            for number, layout in enumerate(_LAYOUTS)
            for dtype in (_DTYPES if layout == (3, 5, 7) else (_DTYPES[number % 3],))
        },
        "backward without a mask": partial(_backward, layout=(9, 70, 1), dtype=torch.float16, masked=False),
        "backward without x": partial(_backward, layout=(3, 5, 7), dtype=torch.float32, with_x=False),
    },
    configurations={
        f"{_named(layout)} {str(dtype)[6:]}": partial(_configuration, layout=layout, dtype=dtype)
        for layout, dtype in (
            ((64, 64, 3136), torch.float32), ((64, 64, 3136), torch.bfloat16), ((4096, 256, 1), torch.float32),
            ((4096, 256, 1), torch.float16),
        )
    },
    mutants=_MUTANTS,
    huge={
        f"past 2^31, {_named(layout)}": partial(_far, layout=layout)
        for layout in ((2, (1 << 30) + 2112, 1), (2, 1, (1 << 30) + 2056))
    },
)  # fmt: skip
