"""Rung 1: every CUDA kernel's source run on the CPU, its bounds, alignment, races and order checked."""

from __future__ import annotations

import functools

import pytest

from .cuda_checks import CHECKS, KERNELS
from .cuda_host import Host
from .ladder import record


@pytest.mark.parametrize("order", ["shuffled", "reversed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_bounds_races_and_order(cuda_host: Host, kernel: str, order: str) -> None:
    checks = [check for check in CHECKS if check.kernel == kernel]
    assert checks
    for check in checks:
        try:
            check(functools.partial(cuda_host.running, order=order))
        except (AssertionError, RuntimeError) as error:
            error.add_note(check.name)
            raise
    if order == "reversed":
        record(f"cuda/{kernel}", 1)
