"""Rungs 3 and 4: the Triton kernels compile for every architecture, and need no more than their budgets."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.ladder import record
from tests.gpu_proof.triton_checks import budget
from tests.gpu_proof.triton_checks.architectures import ARCHITECTURES, blocks_per_multiprocessor
from tests.gpu_proof.triton_checks.compiled import Resources, compiled


def _of(kernel: str) -> str:
    return kernel.split(": ", 1)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_configuration_compiles(architecture):
    families = {_of(kernel) for kernel in compiled(architecture)}
    assert families == set(FAMILIES)


def test_all_architectures_are_climbed():
    """The rung is reached where every architecture is; the tests above say which one is not."""
    every = [compiled(architecture) for architecture in ARCHITECTURES]
    assert len({frozenset(kernels) for kernels in every}) == 1
    for family in FAMILIES.values():
        record(family.rung, 3)


def _wrong(kernels: Resources) -> dict[str, list[str]]:
    found = {}
    for name, needs in kernels.items():
        family, kernel = FAMILIES[_of(name)], name.rsplit(": ", 1)[1].split()[0]
        if problems := budget.unsound(needs, family.multiplies, kernel in family.scattered):
            found[name] = problems
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills_and_everything_fits(architecture):
    assert not _wrong(compiled(architecture))


def test_no_kernel_is_over_its_budget():
    budgets = budget.budgets()
    if budgets["triton"] != budget.version():
        pytest.skip(f"the budgets are for triton {budgets['triton']}, not {budget.version()}")
    worse = {}
    for architecture in ARCHITECTURES:
        of_kernels, found = budgets["architectures"][str(architecture)], compiled(architecture)
        assert of_kernels.keys() == found.keys(), "run python -m tests.gpu_proof.triton_checks.budget"
        for kernel, needs in found.items():
            if problems := budget.over(needs, of_kernels[kernel]):
                worse[architecture, kernel] = problems
        assert not _wrong(found)
    assert not worse
    for family in FAMILIES.values():
        record(family.rung, 4)


def test_a_regression_would_be_seen():
    kernel, needs = next(iter(compiled(90).items()))
    for name, change in (("registers", 1), ("shared", 1), ("blocks", -1), ("loads_of_128_bits", -1)):
        assert budget.over({**needs, name: needs[name] + change}, needs), (kernel, name)
    assert budget.over({**needs, "tensor_core": []}, {**needs, "tensor_core": ["HGMMA"]})
    assert budget.unsound({**needs, "stack": 8}, multiplies=False)
    assert budget.unsound({**needs, "blocks": 0}, multiplies=False)


@pytest.mark.parametrize(
    ("architecture", "registers", "warps", "shared", "blocks"),
    [(80, 32, 4, 0, 16), (90, 255, 4, 0, 2), (90, 64, 8, 100 << 10, 2), (89, 64, 4, 100 << 10, 0)],
)
def test_occupancy(architecture, registers, warps, shared, blocks):
    """Against NVIDIA's occupancy calculator."""
    assert blocks_per_multiprocessor(architecture, registers, warps, shared) == blocks
