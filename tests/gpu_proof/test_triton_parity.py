"""Rung 1: the Triton kernels in the mended interpreter against float64, programs in shuffled orders."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", minversion="3.8")  # whose interpreter is mended here

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.ladder import record
from tests.gpu_proof.triton_checks import interpreter
from tests.gpu_proof.triton_checks.family import faults

pytestmark = interpreter.required()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_kernels_equal_float64_in_any_order_and_past_2_to_the_31(family):
    kernels = family.load()
    wrong = {}
    for seed, (name, problem) in enumerate(family.problems.items()):
        with interpreter.checked(order=seed):
            if found := faults(problem(kernels)):
                wrong[name] = found
    assert family.huge, "no problem past 2^31 elements"
    for name, problem in family.huge.items():
        with interpreter.checked(races=False, ends_only=True):
            if found := faults(problem(kernels)):
                wrong[name] = found
    assert not wrong
    record(family.rung, 1)
