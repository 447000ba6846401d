"""Checks of CUDA kernels by name of the kernel, each a function of the host that runs them and of a case."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Runs what is inside on the host; takes what Host.running takes, but for the order.
Run = Callable[..., contextlib.AbstractContextManager]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1000]
UNIT = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half of the last bit, relative

_MOST_BLOCKS = 65535 * 32  # csrc/cuda/common.cuh: grid_for
THREADS = 256


class Check(NamedTuple):
    """One case of a check."""

    kernel: str
    name: str
    function: Callable[..., None]
    case: dict[str, Any]

    def __call__(self, run: Run) -> None:
        torch.manual_seed(0)
        self.function(run, **self.case)


CHECKS: list[Check] = []


def check(*kernels: str, **cases: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a check of these kernels, for all combinations of its arguments' values."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for kernel in kernels:
            for values in itertools.product(*cases.values()):
                text = "-".join(str(value).removeprefix("torch.") for value in values)
                case = dict(zip(cases, values, strict=True))
                CHECKS.append(Check(kernel, f"{function.__name__}[{text}]", function, case))
        return function

    return register


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that holds NaN, or bytes of ones: what an output is before a kernel writes it."""
    return torch.full(shape, 255 if dtype == torch.uint8 else torch.nan, dtype=dtype)


def numbers(*shape: int, dtype: torch.dtype, special: Sequence[float] = ()) -> Tensor:
    """Normal numbers, of which one in seven is one of ``special``."""
    x = torch.randn(shape)
    if special:
        chosen = torch.tensor(special)[torch.randint(len(special), shape)]
        x = torch.where(torch.rand(shape) < 1 / 7, chosen, x)
    return x.to(dtype)


def close(got: Tensor, truth: Tensor, relative: float, absolute: float = 0.0) -> None:
    """Require ``got`` to be ``truth`` but for an error; NaN where it is, and infinite where it is."""
    torch.testing.assert_close(got.double(), truth.double(), rtol=relative, atol=absolute, equal_nan=True)


def same(got: Tensor, truth: Tensor) -> None:
    """Require ``got`` to be ``truth`` bit for bit, but for the kind of NaN."""
    torch.testing.assert_close(got, truth, rtol=0, atol=0, equal_nan=True)


def virtual(n: int, dtype: torch.dtype) -> Tensor:
    """``n`` zeros of which only those that are written take room: a sparse file, mapped."""
    with tempfile.TemporaryFile() as file:
        file.truncate(n * dtype.itemsize)
        memory = np.memmap(file, dtype=np.uint8, mode="r+")
    return torch.from_numpy(memory).view(dtype)


def elements_of(block: int, n: int, a_block: int = THREADS) -> Tensor:
    """The numbers of the elements, of n, that a block has where a full grid strides over them."""
    blocks = min(-(-n // a_block), _MOST_BLOCKS)
    starts = torch.arange(block * a_block, n, blocks * a_block)
    every = (starts.unsqueeze(1) + torch.arange(a_block)).flatten()
    return every[every < n]


PAST_INT32 = 2**31 + 777


def last_stride(n: int, a_block: int = THREADS) -> list[int]:
    """The first block and the last one that have an element in the last step over n elements."""
    step = min(-(-n // a_block), _MOST_BLOCKS) * a_block
    return [0, (n - 1) % step // a_block]
