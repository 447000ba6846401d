"""Arithmetic of Triton's interpreter as a GPU does it: bfloat16 exactly, tf32 with its short mantissa.

The interpreter holds bfloat16 as 16-bit integers and computes with their bit patterns; float32 is cut off on
the way to it where a GPU rounds to nearest even; ``input_precision="tf32"`` is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

Replacement = tuple[type, str, Callable]


def widened(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 bit patterns as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return float32 as bfloat16 bit patterns, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def truncated_to_tf32(values: np.ndarray) -> np.ndarray:
    """Return float32 without the 13 low bits that tensor cores do not read."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _up(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _down(handle: TensorHandle, wanted: bool) -> TensorHandle:
    return TensorHandle(rounded(handle.data), tl.bfloat16) if wanted else handle


def replacements() -> Iterator[Replacement]:
    """Yield what to put in place of the interpreter's own methods."""
    builder = interpreter.InterpreterBuilder
    dot, binary, unary, fma, cast, to_float = (
        builder.create_dot, builder.binary_op, builder.unary_op, builder.create_fma, builder.cast_impl,
        builder.create_fp_to_fp,
    )  # fmt: skip
    reduce = interpreter.ReduceOps.apply_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> TensorHandle:
        a, b = _up(a), _up(b)
        if a.data.dtype == np.float32 and str(precision).upper().endswith("TF32"):
            a, b = (TensorHandle(truncated_to_tf32(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, d, precision, imprecise)

    def binary_op(self: Any, left: Any, right: Any, op: Callable) -> TensorHandle:
        if not _is_bfloat16(left) and not _is_bfloat16(right):
            result = binary(self, left, right, op)
            # a comparison of scalars keeps their type, and is then spread out as numbers
            return TensorHandle(result.data, tl.int1) if result.data.dtype == np.bool_ else result
        result = op(_up(left).data, _up(right).data)
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(rounded(result), tl.bfloat16)

    def unary_op(self: Any, x: Any, op: Callable) -> TensorHandle:
        return _down(unary(self, _up(x), op), _is_bfloat16(x))

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> TensorHandle:
        return _down(fma(self, _up(x), _up(y), _up(z)), _is_bfloat16(z))

    def cast_impl(self: Any, x: Any, dtype: Any) -> TensorHandle:
        source, target = x.dtype.scalar, dtype.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return cast(self, x, dtype)
        if target == tl.bfloat16:
            return TensorHandle(rounded(x.data.astype(np.float32)), tl.bfloat16)
        return TensorHandle(widened(x.data).astype(interpreter._get_np_dtype(dtype)), target)

    def create_fp_to_fp(self: Any, x: Any, dtype: Any, mode: Any) -> TensorHandle:
        if tl.bfloat16 in (x.dtype.scalar, dtype.scalar):
            return cast_impl(self, x, dtype)
        return to_float(self, x, dtype, mode)

    def apply_impl(self: Any, inputs: Any) -> Any:
        if any(x.dtype.scalar == tl.bfloat16 for x in inputs):
            raise TypeError("a reduction of bfloat16 is wrong in the interpreter: cast to float32 first")
        return reduce(self, inputs)

    for function in (create_dot, binary_op, unary_op, create_fma, cast_impl, create_fp_to_fp):
        yield builder, function.__name__, function
    yield interpreter.ReduceOps, "apply_impl", apply_impl
