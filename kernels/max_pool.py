"""Max-pooling that keeps codes of a few bits, in Triton: where in its window each maximum was.

Codes lie in groups that each begin with a new byte: ``MaxPoolArgs`` in csrc/cpu/kernels.h. All is worked out
in three sizes (d, h, w).
"""

# Triton reads annotations at run time, so they are not postponed here.
import math

import torch
import triton
import triton.language as tl

_BLOCK = 1024
_WIDE = (1 << 31) - _BLOCK


@triton.jit
def _forward(
    X, Y, Codes, bytes, per_group, codes, channels, size_d, size_h, size_w, out_d, out_h, out_w,
    stride_d, stride_h, stride_w, padding_d, padding_h, padding_w, dilation_d, dilation_h, dilation_w,
    KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, LAST: tl.constexpr,
    BITS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    each: tl.constexpr = 8 // BITS
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    flat = tl.arange(0, BLOCK)
    byte = program * (BLOCK // each) + flat // each
    group = byte // per_group
    index = byte % per_group * each + flat % each
    there = (byte < bytes) & (index < codes)
    if LAST:
        d, h, w = group // out_h % out_d, group % out_h, index // channels
        base = group // out_h // out_d * size_d * size_h * size_w * channels + index % channels
        step = channels
    else:
        d, h, w = index // out_w // out_h, index // out_w % out_h, index % out_w
        base = group * (size_d * size_h * size_w)
        step = 1
    d = d * stride_d - padding_d
    h = h * stride_h - padding_h
    w = w * stride_w - padding_w
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    code = tl.full([BLOCK], -1, tl.int32)
    for number in range(KERNEL_D * KERNEL_H * KERNEL_W):
        at_d = d + number // (KERNEL_H * KERNEL_W) * dilation_d
        at_h = h + number // KERNEL_W % KERNEL_H * dilation_h
        at_w = w + number % KERNEL_W * dilation_w
        valid = there & (at_d >= 0) & (at_d < size_d)
        valid = valid & (at_h >= 0) & (at_h < size_h) & (at_w >= 0) & (at_w < size_w)
        at = base + ((at_d * size_h + at_h) * size_w + at_w) * step
        value = tl.load(X + at, mask=valid, other=0.0).to(tl.float32)
        # the first element of the window, then what is larger, and NaN
        taken = valid & ((code < 0) | (value > best) | (value != value))
        best = tl.where(taken, value, best)
        code = tl.where(taken, number, code)
    tl.store(Y + group * codes + index, best, mask=there)
    code = tl.where(there, code, 0)
    to = program * (BLOCK // each) + tl.arange(0, BLOCK // each)
    if each > 1:
        shifts = tl.arange(0, each) * BITS
        code = tl.sum(tl.reshape(code, [BLOCK // each, each]) << shifts[None, :], 1)
    tl.store(Codes + to, code.to(tl.uint8), mask=to < bytes)


@triton.jit
def _first_window(i, out, stride, padding, COVER: tl.constexpr):
    """Return the first of COVER windows along one size among which are all that hold element i."""
    return tl.minimum((i + padding) // stride, out - 1) - (COVER - 1)


@triton.jit
def _place_in_window(i, o, stride, padding, dilation, KERNEL: tl.constexpr):
    """Return which element of window o element i is, and whether it is one."""
    distance = i + padding - o * stride
    held = (o >= 0) & (distance <= (KERNEL - 1) * dilation) & (distance % dilation == 0)
    return distance // dilation, held


@triton.jit
def _backward(
    G, DX, Codes, count, per_group, codes, channels, size_d, size_h, size_w, out_d, out_h, out_w,
    stride_d, stride_h, stride_w, padding_d, padding_h, padding_w, dilation_d, dilation_h, dilation_w,
    KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, COVER_D: tl.constexpr,
    COVER_H: tl.constexpr, COVER_W: tl.constexpr, LAST: tl.constexpr, BITS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    each: tl.constexpr = 8 // BITS
    # an element asks the windows around it: no atomics, one order of addition
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    c = at % channels
    rest = at
    if LAST:
        rest = at // channels
    w, h, d = rest % size_w, rest // size_w % size_h, rest // size_w // size_h % size_d
    before = rest // size_w // size_h // size_d  # samples, or planes
    first_d = _first_window(d, out_d, stride_d, padding_d, COVER_D)
    first_h = _first_window(h, out_h, stride_h, padding_h, COVER_H)
    first_w = _first_window(w, out_w, stride_w, padding_w, COVER_W)
    dx = tl.zeros([BLOCK], tl.float32)
    for number in range(COVER_D * COVER_H * COVER_W):
        od = first_d + number // (COVER_H * COVER_W)
        oh = first_h + number // COVER_W % COVER_H
        ow = first_w + number % COVER_W
        kd, in_d = _place_in_window(d, od, stride_d, padding_d, dilation_d, KERNEL_D)
        kh, in_h = _place_in_window(h, oh, stride_h, padding_h, dilation_h, KERNEL_H)
        kw, in_w = _place_in_window(w, ow, stride_w, padding_w, dilation_w, KERNEL_W)
        held = there & in_d & in_h & in_w
        if LAST:
            group = (before * out_d + od) * out_h + oh
            index = ow * channels + c
        else:
            group = before
            index = (od * out_h + oh) * out_w + ow
        byte = tl.load(Codes + group * per_group + index // each, mask=held, other=0).to(tl.int32)
        code = (byte >> ((index & (each - 1)) * BITS).to(tl.int32)) & (2**BITS - 1)
        held = held & (code == (kd * KERNEL_H + kh) * KERNEL_W + kw)
        dx += tl.load(G + group * codes + index, mask=held, other=0.0).to(tl.float32)
    tl.store(DX + at, dx, mask=there)


def _groups(geometry: tuple) -> tuple[int, int, int]:
    """Return how many groups of codes there are, the bytes of one, and its codes."""
    batch, channels, _, out, *_, last, bits = geometry
    groups, codes = (
        (batch * out[0] * out[1], out[2] * channels) if last else (batch * channels, math.prod(out))
    )
    return groups, triton.cdiv(codes * bits, 8), codes


def max_pool(x: torch.Tensor, y: torch.Tensor, codes: torch.Tensor, geometry: tuple) -> None:
    """Write the maxima and where they come from; all dense, contiguous or channels-last.

    Args:
        x: the input.
        y: the maxima, of its dtype.
        codes: bytes.
        geometry: batch, channels; three numbers each of the input's and the output's size, kernel, stride,
            padding and dilation; whether channels are innermost; the bits of a code.
    """
    _, channels, size, out, kernel, stride, padding, dilation, last, bits = geometry
    groups, per_group, count = _groups(geometry)
    if groups * count == 0:
        return
    _forward[(triton.cdiv(groups * per_group * (8 // bits), _BLOCK),)](
        x, y, codes, groups * per_group, per_group, count, channels, *size, *out, *stride, *padding,
        *dilation, *kernel, LAST=last, BITS=bits,
        WIDE=max(x.numel(), groups * per_group * (8 // bits)) > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip


def max_pool_backward(g: torch.Tensor, dx: torch.Tensor, codes: torch.Tensor, geometry: tuple) -> None:
    """Write the gradient of the input of :func:`max_pool`."""
    _, channels, size, out, kernel, stride, padding, dilation, last, bits = geometry
    groups, per_group, count = _groups(geometry)
    if dx.numel() == 0:
        return
    cover = [(d * (k - 1)) // s + 1 for d, k, s in zip(dilation, kernel, stride, strict=True)]
    _backward[(triton.cdiv(dx.numel(), _BLOCK),)](
        g, dx, codes, dx.numel(), per_group, count, channels, *size, *out, *stride, *padding, *dilation,
        *kernel, *cover, LAST=last, BITS=bits,
        WIDE=max(dx.numel(), groups * per_group * (8 // bits)) > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip
