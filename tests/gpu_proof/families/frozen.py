"""What frozen networks keep: one bit an element, and its gradient."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned

_DTYPES = torch.float32, torch.float16, torch.bfloat16
_KINDS = {
    "relu": (0.0, math.inf),
    "relu between": (-0.3, 0.7),
    "clamp": (-0.3, 0.7),
    "clamp from below": (-0.3, math.inf),
    "clamp from above": (-math.inf, 0.7),
    "threshold": (0.1, -5.0),
    "leaky": (0.1, 0.0),
    "hardsigmoid": (0.0, 0.0),
    "abs": (0.0, 0.0),
}


def _inputs(count: int, dtype: torch.dtype) -> Tensor:
    """Random numbers, the bounds themselves, and what is not finite."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 2
    special = [0.7, -0.3, 0.1, 0.0, -0.0, 3.0, -3.0, math.inf, -math.inf, math.nan]
    x[: len(special)] = torch.tensor(special)[:count]
    return x.to(dtype)


def _bits_and_values(kind: str, x: Tensor, a: float, b: float, rounded: bool) -> tuple[list[Tensor], Tensor]:
    """Planes of booleans and values, by torch's own operators where they have them."""
    if rounded:
        a, b = (float(torch.tensor(bound, dtype=x.dtype)) for bound in (a, b))
    x = x.float()
    if kind == "relu":
        return [~(x <= a) if b == math.inf else (x > a) & (x < b)], x.clamp(a, b)
    if kind == "clamp":
        above = (x > a) | torch.tensor(a == -math.inf)
        return [(above if b == math.inf else above & (x < b)) & ~x.isnan()], x.clamp(a, b)
    if kind == "threshold":
        return [~(x <= a)], torch.nn.functional.threshold(x, a, b)
    if kind == "leaky":
        return [x > 0], torch.where(x > 0, x, x * a)
    if kind == "hardsigmoid":
        return [(x > -3) & (x < 3)], torch.nn.functional.hardsigmoid(x)
    return [x > 0, x < 0], x.abs()


def _packed(bits: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _pack(kernels: ModuleType, name: str, count: int, dtype: torch.dtype) -> list[Comparison]:
    kind, (a, b) = name.split()[0], _KINDS[name]
    x = _inputs(count, dtype)
    compared = []
    for wanted in (True, False):
        planes, values = _bits_and_values(kind, x, a, b, kind == "clamp" or (kind == "relu" and not wanted))
        bits = torch.cat([_packed(plane) for plane in planes])
        mask = poisoned(bits.numel(), dtype=torch.uint8)
        y = poisoned(count, dtype=dtype) if wanted else None
        kernels.pack(kind, x, y, mask, a, b)
        compared.append(Comparison("bits", mask, bits, 0.0))
        if y is not None:
            compared.append(
                Comparison("values", y, values.to(dtype), 1e-6 if dtype == torch.float32 else 1e-3)
            )
    return compared


def _bytes(kernels: ModuleType, count: int) -> list[Comparison]:
    x = torch.arange(count) % 3 == 0
    mask = poisoned((count + 7) // 8, dtype=torch.uint8)
    kernels.pack("true", x.view(torch.uint8), None, mask, 0.0, 0.0)
    return [Comparison("bits", mask, _packed(x), 0.0)]


def _masked(kernels: ModuleType, kind: str, count: int, dtype: torch.dtype) -> list[Comparison]:
    generator = torch.Generator().manual_seed(count)
    g = torch.randn(count, generator=generator).to(dtype)
    yes, no = (torch.rand(count, generator=generator) < 0.5 for _ in range(2))
    mask = torch.cat([_packed(yes), _packed(no)]) if kind == "sign" else _packed(yes)
    a, b = 1.7, 0.3
    truth = {
        "pass": g.where(yes, 0),
        "part": (g.float() * a).where(yes, 0),
        "two": g.float() * torch.where(yes, a, b),
        "sign": g.float() * torch.where(yes, 1.0, torch.where(no, -1.0, 0.0)),
    }[kind]
    g[yes.logical_not().nonzero()[:1]] = math.inf if kind in ("pass", "part") else 1.0
    truth = (
        truth
        if kind in ("pass", "part")
        else truth.index_fill(0, yes.logical_not().nonzero()[:1, 0], b if kind == "two" else 0)
    )
    if kind == "sign":
        at = yes.logical_not().nonzero()[:1, 0]
        truth[at] = torch.where(no[at], -1.0, 0.0)
    dx = poisoned(count, dtype=dtype)
    kernels.masked(kind, g, mask, dx, a, b)
    return [Comparison("gradient", dx, truth.to(dtype), 0.0)]


def _far(kernels: ModuleType) -> list[Comparison]:
    count = (1 << 31) + 13
    x, y = (torch.empty(count, dtype=torch.bfloat16) for _ in range(2))
    mask = torch.empty((count + 7) // 8, dtype=torch.uint8)
    x[-13:] = _inputs(13, torch.bfloat16)
    y[-13:], mask[-2:] = math.nan, 0xA5
    kernels.pack("leaky", x, y, mask, 0.1, 0.0)
    (bits,), values = _bits_and_values("leaky", x[-13:], 0.1, 0.0, False)
    dx = torch.empty_like(x)
    dx[-13:] = math.nan
    kernels.masked("two", x, mask, dx, 1.0, 0.1)
    return [
        Comparison("the last bits", mask[-2:], _packed(bits), 0.0),
        Comparison("the last values", y[-13:], values.bfloat16(), 0.0),
        Comparison(
            "the last gradients", dx[-13:], (x[-13:].float() * torch.where(bits, 1.0, 0.1)).bfloat16(), 0.0
        ),
    ]


def _configuration(kernels: ModuleType, dtype: torch.dtype, kinds: tuple[str, ...]) -> None:
    x, mask = torch.empty(1 << 14, dtype=dtype), torch.empty(1 << 12, dtype=torch.uint8)
    for name in kinds:
        kernels.pack(name.split()[0], x, x, mask, *_KINDS[name])
    kernels.pack("relu", x, None, mask, 0.0, math.inf)
    for kind in ("pass", "part", "two", "sign")[: len(kinds)]:
        kernels.masked(kind, x, mask, x, 1.0, 0.5)


_MUTANTS = {
    "pack: bits past the last": Mutant("inside & bits_of", "bits_of"),
    "pack: bytes past the last are stored": Mutant(", mask=byte < bytes", ""),
    "pack: values past the last are stored": Mutant("KIND), mask=inside)", "KIND))"),
    "pack: bits the other way round": Mutant("<< tl.arange(0, 8)", "<< (7 - tl.arange(0, 8))"),
    "pack: NaN is clamped": Mutant(
        "tl.where(x != x, x, tl.minimum(tl.maximum(x, a), b))",
        "tl.minimum(tl.maximum(x, a), b)",
    ),
    "pack: relu excludes NaN": Mutant("bits = ~(x <= a)", "bits = x > a"),
    "pack: relu includes its bound": Mutant("bits = ~(x <= a)", "bits = ~(x < a)"),
    "pack: relu has no upper bound": Mutant("bits = (x > a) & (x < b)", "bits = x > a"),
    "pack: clamp forgets that there is no lower bound": Mutant('((x > a) | (a == -float("inf")))', "(x > a)"),
    "pack: threshold excludes NaN": Mutant("bits = ~(x <= a)", "bits = x > a", occurrence=1),
    "pack: hardsigmoid includes its bound": Mutant("(x < 3.0)", "(x <= 3.0)"),
    "pack: bounds are not rounded": Mutant("if exact else (a, b)", "if not exact else (a, b)"),
    "pack: no second plane": Mutant("inside & (x < 0.0)", "inside & (x > 0.0)"),
    "pack: the second plane over the first": Mutant("store_bits(Mask + bytes,", "store_bits(Mask,"),
    "pack: bytes of another program": Mutant(
        "byte = program * (BLOCK // 8)", "byte = program * (BLOCK // 16)"
    ),
    "pack: too few programs": Mutant(
        "_pack[(triton.cdiv(count, _BLOCK),)]", "_pack[(max(1, count // _BLOCK),)]"
    ),
    "past: int32 offsets": Mutant("WIDE=count > _WIDE", "WIDE=False"),
    "past: int32 offsets of the gradient": Mutant("WIDE=count > _WIDE", "WIDE=False", occurrence=1),
    "gradient: the wrong bit": Mutant("(at % 8)", "(at // 8 % 8)"),
    "gradient: the wrong byte": Mutant("Mask + at // 8", "Mask + at // 16"),
    "gradient: 0 times infinity": Mutant("tl.where(bits, g * yes, 0.0)", "g * tl.where(bits, yes, 0.0)"),
    "gradient: past the last": Mutant("tl.store(DX + at, dx, mask=inside)", "tl.store(DX + at, dx)"),
    "gradient: yes for no": Mutant("tl.where(bits, yes, no)", "tl.where(bits, no, yes)"),
    "gradient: the sign of one plane": Mutant("load_bits(Mask + bytes, at", "load_bits(Mask, at"),
}

FAMILY = Family(
    name="frozen bits",
    file="frozen.py",
    problems={
        **{
            f"pack {name} of {count} {str(dtype)[6:]}": partial(_pack, name=name, count=count, dtype=dtype)
            for name in _KINDS
            for count, dtype in ((1, torch.float32), (13, torch.bfloat16), (4101, torch.float32), (2048, torch.float16))
        },
        **{f"pack {count} bytes": partial(_bytes, count=count) for count in (5, 4099)},
        **{
            f"gradient {kind} of {count} {str(dtype)[6:]}": partial(_masked, kind=kind, count=count, dtype=dtype)
            for kind in ("pass", "part", "two", "sign")
            for count, dtype in ((13, torch.float32), (4101, torch.bfloat16), (2048, torch.float16))
        },
    },
    configurations={
        "float32": partial(_configuration, dtype=torch.float32, kinds=("relu",)),
        "float16": partial(_configuration, dtype=torch.float16, kinds=("relu",)),
        "bfloat16": partial(_configuration, dtype=torch.bfloat16, kinds=tuple(_KINDS)),
    },
    mutants=_MUTANTS,
    huge={"past 2^31": _far},
)  # fmt: skip
