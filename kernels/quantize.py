"""Values rounded to 8, 4 or 2 bits in groups of neighbours, in Triton; what the codes mean: csrc/common."""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl

_BLOCK = 2048
_WIDE = (1 << 31) - _BLOCK
_GROUP = {8: 64, 4: 64, 2: 256}
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: floats there are whole numbers, rounded to even
_LEAST = tl.constexpr(1.1754943508222875e-38)  # float32's least normal number


@triton.jit
def _store_codes(Codes, codes, program, bytes, BITS: tl.constexpr, BLOCK: tl.constexpr):
    each: tl.constexpr = 8 // BITS
    byte = program * (BLOCK // each) + tl.arange(0, BLOCK // each)
    if BITS == 8:
        tl.store(Codes + byte, tl.reshape(codes, [BLOCK]).to(tl.uint8), mask=byte < bytes)
    else:
        shifted = tl.reshape(codes, [BLOCK // each, each]) << (tl.arange(0, each) * BITS)[None, :]
        tl.store(Codes + byte, tl.sum(shifted, 1).to(tl.uint8), mask=byte < bytes)


@triton.jit
def _even_levels(x, inside, strange, BITS: tl.constexpr):
    """Return the codes, the lowest of the levels at even distances, and the distance."""
    last: tl.constexpr = 2**BITS - 1
    lowest = tl.min(tl.where(inside, x, float("inf")), 1)
    highest = tl.max(tl.where(inside, x, -float("inf")), 1)
    step = tl.div_rn(highest - lowest, tl.full(lowest.shape, last, tl.float32))
    one_level = step < _LEAST  # its inverse might be infinite
    per_step = tl.div_rn(tl.full(step.shape, 1.0, tl.float32), tl.where(one_level, 1.0, step))
    at = (x - lowest[:, None]) * tl.where(one_level, 0.0, per_step)[:, None]
    at = tl.where(at > 0.0, at, 0.0)  # NaN too
    at = tl.where(at < last, at, last)
    return ((at + _ROUND) - _ROUND).to(tl.int32), lowest + strange, step + strange


@triton.jit
def _sum(x, inside):
    return tl.sum(tl.where(inside, x, 0.0), 1)


@triton.jit
def _quantize(
    X, Codes, Numbers, count, bytes, groups,
    BITS: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    group = program * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = at < count
    known = group < groups
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    strange = _sum(x * 0.0, inside)  # 0, or NaN where a number is not finite
    if BITS == 2:
        size = tl.minimum(tl.maximum(count - group * GROUP, 1), GROUP).to(tl.float32)
        each = tl.div_rn(tl.full(size.shape, 1.0, tl.float32), size)[:, None]
        part = x * each
        mean = _sum(part, inside)
        width = 1.2304 * _sum(tl.abs(x - mean[:, None]) * each, inside)
        above = (x > (mean - width)[:, None]).to(tl.int32) + (x > mean[:, None]).to(tl.int32)
        codes = above + (x > (mean + width)[:, None]).to(tl.int32)
        for level in tl.static_range(4):
            here = inside & (codes == level)
            share = _sum(tl.zeros(x.shape, tl.float32) + each, here)
            value = tl.div_rn(_sum(part, here), tl.where(share > 0.0, share, 1.0))
            value = tl.where(share > 0.0, value, mean) + strange
            tl.store(Numbers + group * 4 + level, value, mask=known)
    else:
        codes, lowest, step = _even_levels(x, inside, strange, BITS)
        tl.store(Numbers + group * 2, lowest, mask=known)
        tl.store(Numbers + group * 2 + 1, step, mask=known)
    _store_codes(Codes, tl.where(inside, codes, 0), program, bytes, BITS, BLOCK)


@triton.jit
def _dequantize(
    Codes, Numbers, G, Y, count, groups,
    BITS: tl.constexpr, GROUP: tl.constexpr, PRODUCT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    group = program * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    within = tl.arange(0, GROUP)
    at = group[:, None] * GROUP + within[None, :]
    inside = at < count
    known = group < groups
    each: tl.constexpr = 8 // BITS
    byte = tl.load(Codes + at // each, mask=inside, other=0).to(tl.int32)
    codes = (byte >> (within % each * BITS)[None, :]) & (2**BITS - 1)
    if BITS == 2:
        y = tl.zeros(codes.shape, tl.float32)
        for level in tl.static_range(4):
            value = tl.load(Numbers + group * 4 + level, mask=known, other=0.0)
            y = tl.where(codes == level, value[:, None], y)
    else:
        lowest = tl.load(Numbers + group * 2, mask=known, other=0.0)
        step = tl.load(Numbers + group * 2 + 1, mask=known, other=0.0)
        y = codes.to(tl.float32) * step[:, None] + lowest[:, None]
    if PRODUCT:
        y *= tl.load(G + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + at, y, mask=inside)


def quantize(x: torch.Tensor, codes: torch.Tensor, numbers: torch.Tensor, bits: int) -> None:
    """Write the codes of dense ``x`` and, in float32, each group's numbers.

    Args:
        x: n values.
        codes: ``ceil(n bits / 8)`` bytes.
        numbers: two for each 64 values or, of 2 bits, four for each 256.
        bits: 8, 4 or 2.
    """
    count, group = x.numel(), _GROUP[bits]
    if count == 0:
        return
    _quantize[(triton.cdiv(count, _BLOCK),)](
        x, codes, numbers, count, triton.cdiv(count * bits, 8), triton.cdiv(count, group),
        BITS=bits, GROUP=group, WIDE=count > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip


def dequantize(
    codes: torch.Tensor, numbers: torch.Tensor, g: torch.Tensor | None, y: torch.Tensor, bits: int
) -> None:
    """Write the values that :func:`quantize` wrote down, times ``g`` if given; all dense in one order."""
    count, group = y.numel(), _GROUP[bits]
    if count == 0:
        return
    _dequantize[(triton.cdiv(count, _BLOCK),)](
        codes, numbers, y if g is None else g, y, count, triton.cdiv(count, group),
        BITS=bits, GROUP=group, PRODUCT=g is not None, WIDE=count > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip
