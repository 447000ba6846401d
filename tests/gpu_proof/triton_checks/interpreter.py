"""Triton's interpreter without its silent faults, inside a block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from triton.language import semantic
from triton.runtime import interpreter

from tests.gpu_proof.triton_checks import numerics
from tests.gpu_proof.triton_checks.memory import Memory

InterpreterError = interpreter.InterpreterError  # around whatever a kernel raises
_TRANSCENDENTAL = (np.exp, np.exp2, np.log, np.log2)
_ARITHMETIC = (
    *(np.add, np.subtract, np.multiply, np.divide, np.minimum, np.maximum, np.fmin, np.fmax),
    *(np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
)


def required() -> Any:
    """Return a mark that skips where kernels are compiled: what interprets is decided before an import."""
    return pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="interprets kernels: needs TRITON_INTERPRET=1 from the start, as where there is no GPU",
    )


@contextmanager
def checked(order: int | None = None, races: bool = True, ends_only: bool = False) -> Iterator[Memory]:
    """Interpret kernels with a GPU's arithmetic and every access checked.

    Args:
        order: seed of the order in which programs run; None: ascending.
        races: remember who touched each element, which takes 16 bytes an element of the arguments.
        ends_only: run the first and the last program of each launch only, where there are too many.

    Yields:
        The record of what the launches did.
    """
    memory = Memory(races)
    saved = []
    try:
        for replacements in (
            numerics.replacements,
            lambda: _accesses(memory),
            lambda: _launches(memory, order, ends_only),
            _repetitions,
            _overflows,
        ):
            for owner, name, function in list(replacements()):
                saved.append((owner, name, getattr(owner, name)))
                setattr(owner, name, function)
        with np.errstate(all="ignore"):
            yield memory
    finally:
        for owner, name, function in reversed(saved):
            setattr(owner, name, function)


def _accesses(memory: Memory) -> Iterator[tuple[type, str, Callable]]:
    builder = interpreter.InterpreterBuilder
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    dot, unary, binary, fma = builder.create_dot, builder.unary_op, builder.binary_op, builder.create_fma
    reduce = interpreter.ReduceOps.apply_impl

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.loads(pointers.data, mask.data)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.stores(pointers.data, mask.data)
        return store(self, pointers, value, mask, *rest)

    def create_atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.stores(pointers.data, mask.data, atomic=True)
        return atomic(self, op, pointers, value, mask, *rest)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        memory.traffic.flops += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *rest)

    def unary_op(self: Any, x: Any, op: Callable) -> Any:
        if op in _TRANSCENDENTAL:
            memory.traffic.transcendentals += x.data.size
        return unary(self, x, op)

    def binary_op(self: Any, left: Any, right: Any, op: Callable) -> Any:
        if op in _ARITHMETIC and left.dtype.scalar.is_floating():
            memory.traffic.operations += max(left.data.size, right.data.size)
        return binary(self, left, right, op)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        memory.traffic.operations += 2 * z.data.size
        return fma(self, x, y, z)

    def apply_impl(self: Any, inputs: Any) -> Any:
        memory.traffic.operations += sum(x.handle.data.size for x in inputs if x.dtype.is_floating())
        return reduce(self, inputs)

    for function in (
        *(create_masked_load, create_masked_store, create_atomic_rmw, create_dot),
        *(unary_op, binary_op, create_fma),
    ):
        yield builder, function.__name__, function
    yield interpreter.ReduceOps, "apply_impl", apply_impl


def _repetitions() -> Iterator[tuple[Any, str, Callable]]:
    """Do once what the interpreter does anew at every step, up to half of its time.

    At each call of a function it searches the language for what to replace, though that is in place since the
    launch, or since the first call of a function of that module; for each tensor it writes out the table of
    NumPy's types.
    """
    executor = interpreter.GridExecutor
    patch, call, numpy_type = interpreter._patch_lang, executor.__call__, interpreter._get_np_dtype
    patched: set[int] = set()
    numpy_types: dict[str, np.dtype] = {}

    def _patch_lang(function: Any) -> Any:
        names = id(function.__globals__)
        if names in patched:
            return None  # only a launch undoes what it gets here
        patched.add(names)
        return patch(function)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        call(self, *args, **kwargs)

    def _get_np_dtype(of: Any) -> np.dtype:
        name = of.scalar.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(of)
        return numpy_types[name]

    yield interpreter, "_patch_lang", _patch_lang
    yield executor, "__call__", __call__
    yield interpreter, "_get_np_dtype", _get_np_dtype


def _overflows() -> Iterator[tuple[type, str, Callable]]:
    """Refuse integers that overflow.

    Triton's own check makes a dozen operations of the language of each addition, and then asserts nothing,
    as kernels are not interpreted for debugging.
    """

    def binary_op_sanitize_overflow_impl(self: Any, lhs: Any, rhs: Any, binary_op: Callable) -> None:
        kind = lhs.type.scalar
        if kind.int_bitwidth >= 64:
            return
        operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
        exact = operation(lhs.handle.data, rhs.handle.data, dtype=np.int64)
        inside = (exact >= kind.get_int_min_value()) & (exact <= kind.get_int_max_value())
        assert inside.all(), f"int{kind.int_bitwidth} overflow detected for operation {binary_op.__name__}"

    yield semantic.TritonSemantic, "binary_op_sanitize_overflow_impl", binary_op_sanitize_overflow_impl


def _launches(memory: Memory, order: int | None, ends_only: bool) -> Iterator[tuple[type, str, Callable]]:
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    prepare, set_dim, set_index, call = (
        executor._init_args_hst, builder.set_grid_dim, builder.set_grid_idx, executor.__call__
    )  # fmt: skip
    programs: list[np.ndarray] = []
    real: list[tuple[int, ...]] = []

    def _init_args_hst(self: Any, args: Any, kwargs: Any) -> Any:
        on_host = prepare(self, args, kwargs)
        named = zip(self.arg_names, on_host[0], strict=False)
        memory.begin({n: interpreter._unwrap_tensor(x) for n, x in (*named, *on_host[1].items())})
        return on_host

    def __call__(self: Any, *args: Any, **kwargs: Any) -> None:
        grid = tuple(self.grid) + (1,) * (3 - len(self.grid))
        count = grid[0] * grid[1] * grid[2]
        chosen = np.unique([0, count - 1]) if ends_only else np.arange(count)
        programs[:] = [chosen if order is None else np.random.default_rng(order).permutation(chosen)]
        real[:] = [grid]
        self.grid = (chosen.size,)
        call(self, *args, **kwargs)

    def set_grid_dim(self: Any, *loop: int) -> None:
        set_dim(self, *real[0])

    def set_grid_idx(self: Any, number: int, *zeros: int) -> None:
        _, ny, nz = self.grid_dim
        memory.program = program = int(programs[0][number])
        set_index(self, program // (ny * nz), program // nz % ny, program % nz)

    yield executor, "_init_args_hst", _init_args_hst
    yield executor, "__call__", __call__
    yield builder, "set_grid_dim", set_grid_dim
    yield builder, "set_grid_idx", set_grid_idx
