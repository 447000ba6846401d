"""Rung 2: bugs planted in the Triton kernels are caught by what rung 1 runs, or are no bugs."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", minversion="3.8")

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.ladder import record
from tests.gpu_proof.triton_checks import interpreter
from tests.gpu_proof.triton_checks.family import Family, Mutant, faults

pytestmark = interpreter.required()


def _noticed(family: Family, name: str, mutant: Mutant) -> bool:
    kernels = family.load(mutant)
    for problem, huge in family.problems_for(name):
        with interpreter.checked(order=1, races=not huge, ends_only=huge):
            try:
                if faults(problem(kernels)):
                    return True
            except (interpreter.InterpreterError, ArithmeticError, RuntimeError, ValueError):
                return True  # out of bounds, a race, or what does not even run
    return False


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_planted_bugs_are_noticed(family):
    unseen = {name for name, mutant in family.mutants.items() if not _noticed(family, name, mutant)}
    assert unseen == {name for name, mutant in family.mutants.items() if mutant.harmless}
    assert len(family.mutants) - len(unseen) >= 10
    record(family.rung, 2)
