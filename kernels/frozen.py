"""What frozen networks keep, in Triton: activations with one bit an element, and the gradients of the bits.

Element i, in the order of memory, is bit ``i % 8`` of byte ``i // 8``.
"""

# Triton reads annotations at run time, so they are not postponed here.
import math

import torch
import triton
import triton.language as tl

_BLOCK = 2048
_WIDE = (1 << 31) - _BLOCK


@triton.jit
def bits_of(x, a, b, KIND: tl.constexpr, BOUNDED: tl.constexpr):
    """Return the bits of numbers, by the kind of activation."""
    if KIND == "relu":
        if BOUNDED:
            bits = (x > a) & (x < b)
        else:
            bits = ~(x <= a)
    elif KIND == "clamp":
        if BOUNDED:
            bits = (x < b) & ((x > a) | (a == -float("inf")))
        else:
            bits = x > a
    elif KIND == "threshold":
        bits = ~(x <= a)
    elif KIND == "hardsigmoid":
        bits = (x > -3.0) & (x < 3.0)
    elif KIND == "true":
        bits = x != 0
    else:
        bits = x > 0.0
    return bits


@triton.jit
def clamped(x, a, b):
    """Return numbers between two bounds."""
    # NaN stays NaN, which a GPU's minimum and maximum do not promise
    return tl.where(x != x, x, tl.minimum(tl.maximum(x, a), b))


@triton.jit
def _value_of(x, a, b, KIND: tl.constexpr):
    if (KIND == "relu") or (KIND == "clamp"):
        y = clamped(x, a, b)
    elif KIND == "threshold":
        y = tl.where(x <= a, b, x)
    elif KIND == "leaky":
        y = tl.where(x > 0.0, x, x * a)
    elif KIND == "hardsigmoid":
        y = clamped(x + 3.0, 0.0, 6.0) / 6.0
    else:
        y = tl.abs(x)
    return y


@triton.jit
def store_bits(Mask, bits, byte, bytes, BLOCK: tl.constexpr):
    """Write BLOCK bits into the bytes of these numbers, below ``bytes``."""
    weights = tl.full([1], 1, tl.int32) << tl.arange(0, 8)
    grouped = tl.reshape(bits.to(tl.int32), [BLOCK // 8, 8]) * weights[None, :]
    tl.store(Mask + byte, tl.sum(grouped, 1).to(tl.uint8), mask=byte < bytes)


@triton.jit
def _pack(
    X, Y, Mask, count, bytes, a, b, lower, upper,
    KIND: tl.constexpr, BOUNDED: tl.constexpr, VALUES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    byte = program * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    inside = at < count
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    store_bits(Mask, inside & bits_of(x, lower, upper, KIND, BOUNDED), byte, bytes, BLOCK)
    if KIND == "abs":
        store_bits(Mask + bytes, inside & (x < 0.0), byte, bytes, BLOCK)
    if VALUES:
        tl.store(Y + at, _value_of(x, a, b, KIND), mask=inside)


@triton.jit
def load_bits(Mask, at, inside):
    """Return the bits of elements; not set outside."""
    byte = tl.load(Mask + at // 8, mask=inside, other=0).to(tl.int32)
    return ((byte >> (at % 8).to(tl.int32)) & 1) != 0


@triton.jit
def _masked(
    G, Mask, DX, count, bytes, yes, no,
    KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(G + at, mask=inside, other=0.0).to(tl.float32)
    bits = load_bits(Mask, at, inside)
    if KIND == "pass":
        dx = tl.where(bits, g, 0.0)
    elif KIND == "part":
        dx = tl.where(bits, g * yes, 0.0)
    elif KIND == "two":
        dx = g * tl.where(bits, yes, no)
    else:
        negative = load_bits(Mask + bytes, at, inside)
        dx = g * tl.where(bits, 1.0, tl.where(negative, -1.0, 0.0))
    tl.store(DX + at, dx, mask=inside)


def _rounded(number: float, x: torch.Tensor) -> float:
    """Return what the dtype of ``x`` makes of a number."""
    return float(torch.tensor(number, dtype=x.dtype, device="cpu"))


def pack(kind: str, x: torch.Tensor, y: torch.Tensor | None, mask: torch.Tensor, a: float, b: float) -> None:
    """Write y, where it is wanted, and the bits; all dense in the order of x. Kinds and numbers: csrc/cpu."""
    count = x.numel()
    if count == 0:
        return
    # torch's clamp compares with the numbers that the dtype has; so does this where x is clamped already
    exact = kind == "clamp" or (kind == "relu" and y is None)
    lower, upper = (_rounded(a, x), _rounded(b, x)) if exact else (a, b)
    _pack[(triton.cdiv(count, _BLOCK),)](
        x, x if y is None else y, mask, count, triton.cdiv(count, 8), a, b, lower, upper,
        KIND=kind, BOUNDED=b < math.inf, VALUES=y is not None, WIDE=count > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip


def masked(kind: str, g: torch.Tensor, mask: torch.Tensor, dx: torch.Tensor, yes: float, no: float) -> None:
    """Write the gradient that the bits give; all dense in one order. Kinds and numbers: csrc/cpu."""
    count = g.numel()
    if count == 0:
        return
    _masked[(triton.cdiv(count, _BLOCK),)](
        g, mask, dx, count, triton.cdiv(count, 8), yes, no,
        KIND=kind, WIDE=count > _WIDE, BLOCK=_BLOCK,
    )  # fmt: skip
