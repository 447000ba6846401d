"""csrc/cuda/channels.cu: gradients with their sums by channel, and what is scaled by channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.ops.frozen import cuda, reference

from .registry import (
    DTYPES,
    UNIT,
    Run,
    check,
    close,
    elements_of,
    last_stride,
    numbers,
    poisoned,
    same,
    virtual,
)

# outer, channels, inner
LAYOUTS = [
    (1, 1, 1),
    (3, 5, 7),
    (2, 3, 300),
    (1, 2, 256),
    (40, 33, 1),
    (9, 64, 1),
    (600, 31, 1),
    (0, 4, 1),
    (2, 4, 0),
]


def by_channel(x: Tensor) -> Tensor:
    return x.sum((0, 2))


def factors_of(channels: int) -> Tensor:
    return torch.randn(channels)


def bits_of(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    bits = torch.rand(shape) < 0.6
    return bits, reference.pack(bits)


@check("channel_sum", layout=LAYOUTS, dtype=DTYPES, kind=["pass", "two", "factors"], masked=[False, True])
def sums_by_channel(run: Run, layout: tuple, dtype: torch.dtype, kind: str, masked: bool) -> None:
    g = numbers(*layout, dtype=dtype)
    bits, mask = bits_of(layout)
    factors = factors_of(layout[1]) if kind == "factors" else None
    no = 0.0 if kind == "pass" else -0.25
    for want_dx, want_sums in ((True, True), (False, True), (True, False)):
        dx = poisoned(*layout, dtype=dtype) if want_dx else None
        sums = poisoned(layout[1]) if want_sums else None
        with run(seed=want_dx):
            name = "pass" if kind == "pass" else "two"
            cuda.channel_sum(name, g, mask if masked else None, dx, layout, 0.75, no, factors, sums)
        otherwise = no if factors is None else factors.double().view(-1, 1)
        wide = g.double()
        d = torch.where(bits, wide * (1 if kind == "pass" else 0.75), wide * otherwise)
        if not masked:
            d = wide * (1 if kind == "pass" else 0.75)
        if dx is not None:
            close(dx, d, UNIT[dtype] + 1e-7)
        if sums is not None:
            close(sums, by_channel(d), 0, 3e-7 * float(1 + by_channel(d.abs()).max()))


@check("channel_sum")
def gradients_in_place(run: Run) -> None:
    layout = 5, 37, 1
    g = numbers(*layout, dtype=torch.float32)
    (bits, mask), dx, sums = bits_of(layout), g.clone(), poisoned(37)
    with run():
        cuda.channel_sum("pass", dx, mask, dx, layout, 0.0, 0.0, None, sums)
    same(dx, torch.where(bits, g, 0.0))
    close(sums, by_channel(dx.double()), 0, 1e-5)


@check("channel_sum", inner=[1, 60_000])
def sums_of_many_equal_numbers(run: Run, inner: int) -> None:
    """Of sums that are not compensated the error here is a hundred times as large."""
    g = torch.full((60_000 // inner, 1, inner), 0.1)
    sums = poisoned(1)
    with run():
        cuda.channel_sum("pass", g, None, None, tuple(g.shape), 0.0, 0.0, None, sums)
    close(sums, by_channel(g.double()), 1.5e-7)


@check("channel_sum", "channel_affine_backward", value=[math.inf, -math.inf, math.nan])
def sums_that_are_not_finite(run: Run, value: float) -> None:
    g, sums = torch.ones(700, 3, 1), poisoned(2, 3)
    g[123, 1] = value
    with run():
        cuda.channel_sum("pass", g, None, None, tuple(g.shape), 0.0, 0.0, None, sums[0])
    same(sums[0], by_channel(g))
    with run():
        cuda.channel_affine_backward(
            g, None, None, None, None, sums, (700, 3, 1), torch.ones(3), torch.zeros(3)
        )
    same(sums[0], by_channel(g))


def far_layout() -> tuple[int, int, int]:
    return 2, 2**30 + 64 * 33, 1


@check("channel_sum")
def sums_past_two_to_the_31(run: Run) -> None:
    layout = far_layout()
    channels = layout[1]
    g, dx = virtual(2 * channels, torch.float32), virtual(2 * channels, torch.float32)
    sums, mask = virtual(channels, torch.float32), virtual(2 * channels // 8, torch.uint8)
    last = channels - 32
    at = torch.stack([torch.arange(last, channels), torch.arange(channels + last, 2 * channels)])
    g[at] = torch.randn(2, 32)
    mask[at[:, ::8] // 8] = torch.randint(256, (2, 4), dtype=torch.uint8)
    with run(blocks=[last // 32]):
        cuda.channel_sum("pass", g, mask, dx, layout, 0.0, 0.0, None, sums)
    bit = (mask[at // 8] >> (at % 8).to(torch.uint8) & 1).bool()
    d = torch.where(bit, g[at].float(), 0.0)
    same(dx[at].float(), d)
    close(sums[last:], d.sum(0), 1e-6)


def scaled(x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    value = x.double() * scale.double().view(-1, 1) + shift.double().view(-1, 1)
    return value if other is None else value + other.double()


@check("channel_affine", layout=LAYOUTS, dtype=DTYPES, clamp=[None, (0.0, math.inf), (-0.5, 0.75)])
def scales_by_channel(run: Run, layout: tuple, dtype: torch.dtype, clamp: tuple | None) -> None:
    x, scale, shift = numbers(*layout, dtype=dtype), torch.randn(layout[1]), torch.randn(layout[1])
    lower, upper = clamp or (0.0, 0.0)
    for added in (None, "separate", "in place"):
        other = None if added is None else numbers(*layout, dtype=dtype)
        y = other.clone() if added == "in place" else poisoned(*layout, dtype=dtype)
        mask = None if clamp is None else poisoned(-(-x.numel() // 8), dtype=torch.uint8)
        with run(seed=len(added or "")):
            cuda.channel_affine(
                x, y if added == "in place" else other, y, mask, layout, scale, shift, lower, upper
            )
        truth = scaled(x, other, scale, shift)
        size = (x.double() * scale.double().view(-1, 1)).abs() + shift.abs().view(-1, 1)
        allowed = UNIT[dtype] * truth.abs() + 4e-7 * (size + (0 if other is None else other.double().abs()))
        limited = truth if clamp is None else truth.clamp(lower, upper)
        assert ((y.double() - limited).abs() <= allowed).all()
        if mask is not None:
            sure = ((truth - lower).abs() > allowed) & ((truth - upper).abs() > allowed)
            bits = reference.unpack(mask, layout, x.stride())
            inside = (truth > lower) & (truth < upper)
            same(bits[sure], inside[sure])
            whole = reference.pack(bits)
            same(mask, whole)  # what follows the last bit is 0


@check("channel_affine", upper=[math.inf, 6.0])
def scaled_numbers_that_are_not_finite(run: Run, upper: float) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0, 7.0]).view(1, 1, 6)
    y, mask = poisoned(1, 1, 6), poisoned(1, dtype=torch.uint8)
    with run():
        cuda.channel_affine(x, None, y, mask, (1, 1, 6), torch.ones(1), torch.zeros(1), 0.0, upper)
    truth, bits = reference.channel_affine(x, None, torch.ones(1), torch.zeros(1), 0.0, upper)
    same(y, truth)
    same(mask, bits)


@check("channel_affine")
def scales_past_two_to_the_31(run: Run) -> None:
    layout = far_layout()
    n = 2 * layout[1]
    x, other, y = (virtual(n, torch.float32) for _ in range(3))
    mask, scale, shift = (
        virtual(n // 8, torch.uint8),
        virtual(layout[1], torch.float32),
        virtual(layout[1], torch.float32),
    )
    block = last_stride(n)[1]
    at = elements_of(block, n)
    assert at[-1] >= 2**31
    x[at], other[at] = torch.randn(len(at)), torch.randn(len(at))
    channel = at % layout[1]
    scale[channel], shift[channel] = torch.randn(len(at)), torch.randn(len(at))
    with run(blocks=[block]):
        cuda.channel_affine(x, other, y, mask, layout, scale, shift, 0.0, math.inf)
    truth = x[at].double() * scale[channel].double() + shift[channel].double() + other[at].double()
    close(y[at], truth.clamp(0), 1e-6, 2e-6)
    sure = truth.abs() > 1e-5
    same((mask[at // 8] >> (at % 8).to(torch.uint8) & 1).bool()[sure], (truth > 0)[sure])


@check("channel_affine_backward", layout=LAYOUTS, dtype=DTYPES, masked=[False, True], with_x=[False, True])
def gradients_of_scaling(run: Run, layout: tuple, dtype: torch.dtype, masked: bool, with_x: bool) -> None:
    g, x = numbers(*layout, dtype=dtype), numbers(*layout, dtype=dtype, special=[math.inf] if masked else ())
    bits = (torch.rand(layout) < 0.6) & x.isfinite()
    scale, mean, channels = torch.randn(layout[1]), torch.randn(layout[1]), layout[1]
    for want in (True, False):
        dx, dother = (poisoned(*layout, dtype=dtype) if want else None for _ in range(2))
        sums = poisoned(2, channels)
        with run(seed=want):
            cuda.channel_affine_backward(
                g, x if with_x else None, reference.pack(bits) if masked else None, dx, dother, sums, layout,
                scale, mean,
            )  # fmt: skip
        d = torch.where(bits, g.double(), 0.0) if masked else g.double()
        apart = torch.where(d == 0, 0.0, d * (x.double() - mean.double().view(-1, 1)))
        if dx is not None:
            close(dx, d * scale.double().view(-1, 1), UNIT[dtype] + 2e-7)
            same(dother, d.to(dtype))
        close(sums[0], by_channel(d), 0, 3e-7 * float(1 + by_channel(d.abs()).max()))
        truth = by_channel(apart) if with_x else torch.zeros(channels)
        close(sums[1], truth, 0, 3e-7 * float(1 + by_channel(apart.abs()).max()))


@check("channel_affine_backward", inner=[1, 60_000])
def both_sums_of_many_equal_numbers(run: Run, inner: int) -> None:
    g = torch.full((60_000 // inner, 1, inner), 0.1)
    sums = poisoned(2, 1)
    with run():
        cuda.channel_affine_backward(
            g, g, None, None, None, sums, tuple(g.shape), torch.ones(1), torch.zeros(1)
        )
    close(sums[0], by_channel(g.double()), 1.5e-7)
    close(sums[1], by_channel(g.double().square()), 2.5e-7)


@check("channel_affine_backward")
def gradients_of_scaling_past_two_to_the_31(run: Run) -> None:
    layout = far_layout()
    channels = layout[1]
    g, x, dx, dother = (virtual(2 * channels, torch.float32) for _ in range(4))
    sums, scale, mean = (
        virtual(2 * channels, torch.float32),
        virtual(channels, torch.float32),
        virtual(channels, torch.float32),
    )
    mask, last = virtual(2 * channels // 8, torch.uint8), channels - 32
    at = torch.stack([torch.arange(last, channels), torch.arange(channels + last, 2 * channels)])
    g[at], x[at], scale[last:] = torch.randn(2, 32), torch.randn(2, 32), torch.randn(32)
    mask[at[:, ::8] // 8] = torch.randint(256, (2, 4), dtype=torch.uint8)
    bit = (mask[at // 8] >> (at % 8).to(torch.uint8) & 1).bool()
    for masked in (False, True):
        with run(blocks=[last // 32]):
            cuda.channel_affine_backward(
                g, x, mask if masked else None, dx, dother, sums.view(2, -1), layout, scale, mean
            )
        d = torch.where(bit, g[at], 0.0) if masked else g[at].clone()
        same(dother[at], d)
        same(dx[at], d * scale[last:])
        close(sums[last:channels], d.double().sum(0), 1e-6)
        close(sums[channels + last :], (d.double() * x[at].double()).sum(0), 1e-6, 1e-6)


@check("channel_sum", "channel_affine_backward")
def no_channels(run: Run) -> None:
    layout, x = (3, 0, 4), torch.empty(0)
    with run():
        cuda.channel_sum("pass", x, None, x, layout, 0.0, 0.0, None, x)
        cuda.channel_affine_backward(x, x, None, x, x, torch.empty(2, 0), layout, x, x)
