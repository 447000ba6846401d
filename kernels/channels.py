"""Gradients with their sums by channel, and what is scaled by channel, in Triton.

Dense tensors lie in memory as (outer, channels, inner). Sums leave as parts, one a program and channel, in an
order that no schedule changes; the caller adds them up.
"""

# Triton reads annotations at run time, so they are not postponed here.
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from thawkit.kernels.frozen import bits_of, clamped, load_bits, store_bits
from thawkit.kernels.launch import given

_BLOCK = 2048
_WIDE = (1 << 31) - _BLOCK
_STEPS = 8  # tiles that a program adds up, one after the other: few, so that the sums need no compensation


@triton.jit
def _affine(
    X, Other, Y, Mask, Scale, Shift, count, bytes, channels, inner, lower, upper,
    OTHER: tl.constexpr, CLAMP: tl.constexpr, BOUNDED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = at // inner % channels
    value = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(Scale + channel, mask=inside, other=0.0)
    value += tl.load(Shift + channel, mask=inside, other=0.0)
    if OTHER:
        value += tl.load(Other + at, mask=inside, other=0.0).to(tl.float32)
    if CLAMP:
        value = value.to(Y.dtype.element_ty).to(tl.float32)  # the bits are those of what is stored
        byte = program * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        store_bits(Mask, inside & bits_of(value, lower, upper, "relu", BOUNDED), byte, bytes, BLOCK)
        value = clamped(value, lower, upper)
    tl.store(Y + at, value, mask=inside)


@triton.jit
def _by_channel(Numbers, channel, known, ROWS: tl.constexpr):
    if ROWS:
        return tl.load(Numbers + channel, mask=known, other=0.0)[None, :]
    else:
        return tl.load(Numbers + channel)


@triton.jit
def _store_sums(Parts, sums, channel, known, ROWS: tl.constexpr):
    if ROWS:
        tl.store(Parts + channel, tl.sum(sums, 0), mask=known)
    else:
        tl.store(Parts + channel, tl.sum(tl.sum(sums, 1), 0))


@triton.jit
def _backward(
    G, X, Mask, DX, DOther, Parts, Scale, Mean, outer, channels, inner, columns, blocks, parts, yes, no,
    TWO: tl.constexpr, FACTORS: tl.constexpr, MASK: tl.constexpr, SCALED: tl.constexpr, SUMS: tl.constexpr,
    NEED_DX: tl.constexpr, NEED_DOTHER: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    # ROWS: a tile has neighbouring channels, else neighbours of one channel
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    column = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    known = column < columns
    part = program // blocks
    slot = part
    channel = column
    base = column
    if not ROWS:
        channel = part % channels
        part = part // channels
        slot = part * blocks + program % blocks
        base = channel * inner + column
    if FACTORS or SCALED:
        scale = _by_channel(Scale, channel, known, ROWS)
    if SUMS == 2:
        mean = _by_channel(Mean, channel, known, ROWS)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(STEPS):
        row = (part * STEPS + step) * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = (row[:, None] < outer) & known[None, :]
        at = row[:, None] * (channels * inner) + base[None, :]
        d = tl.load(G + at, mask=inside, other=0.0).to(tl.float32)
        bits = inside
        if MASK:
            bits = load_bits(Mask, at, inside)
        if TWO:
            if FACTORS:
                d = d * tl.where(bits, yes, scale)
            else:
                d = d * tl.where(bits, yes, no)
        else:
            d = tl.where(bits, d, 0.0)
        if NEED_DX:
            if SCALED:
                tl.store(DX + at, d * scale, mask=inside)
            else:
                tl.store(DX + at, d, mask=inside)
        if NEED_DOTHER:
            tl.store(DOther + at, d, mask=inside)
        if SUMS >= 1:
            total += d
        if SUMS == 2:
            # no 0 times infinity where no gradient passes
            x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
            product += tl.where(bits, d * (x - mean), 0.0)
    if SUMS >= 1:
        _store_sums(Parts + slot * channels, total, channel, known, ROWS)
    if SUMS == 2:
        _store_sums(Parts + (parts + slot) * channels, product, channel, known, ROWS)


class _Tiles(NamedTuple):
    """How a gradient is cut up: columns of a row in blocks, and how many parts a channel's sum has."""

    rows: bool
    columns: int
    block_r: int
    block_c: int
    blocks: int
    groups: int
    parts: int


def _tiles(layout: tuple[int, int, int]) -> _Tiles:
    outer, channels, inner = layout
    rows = inner == 1
    columns = channels if rows else inner
    block_c = min(triton.next_power_of_2(columns), 64 if rows else _BLOCK)
    block_r = max(1, min(_BLOCK // block_c, triton.next_power_of_2(outer)))
    blocks, groups = triton.cdiv(columns, block_c), triton.cdiv(outer, block_r * _STEPS)
    return _Tiles(rows, columns, block_r, block_c, blocks, groups, groups if rows else groups * blocks)


def sum_parts(layout: tuple[int, int, int]) -> int:
    """Return how many parts each sum that the functions below write consists of."""
    return _tiles(layout).parts


def channel_affine(
    x: torch.Tensor,
    other: torch.Tensor | None,
    y: torch.Tensor,
    mask: torch.Tensor | None,
    layout: tuple[int, int, int],
    scale: torch.Tensor,
    shift: torch.Tensor,
    lower: float,
    upper: float,
) -> None:
    """Write ``x * scale + shift + other``, clamped where there is a mask, whose bits are those of relu.

    Args:
        x, other, y: dense, in one order.
        mask: one bit an element.
        layout: outer, channels, inner.
        scale, shift: float32, one number a channel.
        lower, upper: bounds of the clamp.
    """
    count = math.prod(layout)
    if count == 0:
        return
    _affine[(triton.cdiv(count, _BLOCK),)](
        x, given(other, x), y, given(mask, x), scale, shift, count, triton.cdiv(count, 8), *layout[1:], lower,
        upper, OTHER=other is not None, CLAMP=mask is not None, BOUNDED=upper < math.inf, WIDE=count > _WIDE,
        BLOCK=_BLOCK,
    )  # fmt: skip


def channel_sum(
    kind: str,
    g: torch.Tensor,
    mask: torch.Tensor | None,
    dx: torch.Tensor | None,
    layout: tuple[int, int, int],
    yes: float,
    no: float,
    factors: torch.Tensor | None,
    parts: torch.Tensor | None,
) -> None:
    """Write the gradient that the bits give, and the parts of its sums by channel, each where it is wanted.

    Args:
        kind: ``pass``: ``bit ? g : 0``; ``two``: ``g * (bit ? yes : no)``.
        g, dx: dense, in one order.
        mask: one bit an element; None: all are set.
        layout: outer, channels, inner.
        yes, no: factors.
        factors: float32, takes the place of ``no`` by channel.
        parts: (:func:`sum_parts`, channels) in float32.
    """
    _gradients(
        g, None, mask, dx, None, parts, factors, None, layout, yes, no,
        TWO=kind == "two", FACTORS=factors is not None, SCALED=False, SUMS=int(parts is not None),
    )  # fmt: skip


def channel_affine_backward(
    g: torch.Tensor,
    x: torch.Tensor | None,
    mask: torch.Tensor | None,
    dx: torch.Tensor | None,
    dother: torch.Tensor | None,
    parts: torch.Tensor,
    layout: tuple[int, int, int],
    scale: torch.Tensor,
    mean: torch.Tensor,
) -> None:
    """Write the gradients of :func:`channel_affine` that are wanted, and the parts of their sums.

    With ``d = bit ? g : 0`` these are ``d * scale`` by x and ``d`` by other; the sums are those of ``d`` and,
    where x is given, of ``d * (x - mean)``. ``parts`` is (2, :func:`sum_parts`, channels), or (1, ...).
    """
    _gradients(
        g, x, mask, dx, dother, parts, scale, mean, layout, 1.0, 0.0,
        TWO=False, FACTORS=False, SCALED=dx is not None, SUMS=1 if x is None else 2,
    )  # fmt: skip


def _gradients(
    g: torch.Tensor,
    x: torch.Tensor | None,
    mask: torch.Tensor | None,
    dx: torch.Tensor | None,
    dother: torch.Tensor | None,
    parts: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    layout: tuple[int, int, int],
    yes: float,
    no: float,
    **kinds: bool | int,
) -> None:
    outer, channels, inner = layout
    if math.prod(layout) == 0:
        return
    tiles = _tiles(layout)
    programs = tiles.groups * tiles.blocks * (1 if tiles.rows else channels)
    _backward[(programs,)](
        g, given(x, g), given(mask, g), given(dx, g), given(dother, g), given(parts, g),
        given(scale, g), given(shift, g),
        outer, channels, inner, tiles.columns, tiles.blocks, tiles.parts, yes, no,
        MASK=mask is not None, NEED_DX=dx is not None, NEED_DOTHER=dother is not None, ROWS=tiles.rows,
        WIDE=math.prod(layout) > _WIDE, BLOCK_R=tiles.block_r, BLOCK_C=tiles.block_c, STEPS=_STEPS, **kinds,
    )  # fmt: skip
