"""Rungs 3 and 4: every CUDA kernel compiles for every architecture, within the budget that git keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .cuda_binary import ARCHITECTURES, BUDGET, KERNEL_OF, compiler, missing_tool
from .cuda_budget import Lines, measured
from .cuda_host.build import kept
from .ladder import record

# whose loads are of 16 bytes
WIDE_LOADS = {
    *("focal_kernel", "focal_options_kernel", "softmax_kernel", "clip_kernel", "sigmoid_kernel"),
    *("tile_kernel", "rates_kernel", "values_kernel", "digits_kernel"),
    *("best_of_groups_kernel", "keys_of_groups_kernel"),
    *("distances_kernel", "all_triplets_kernel", "semihard_triplets_kernel", "hardest_triplet_kernel"),
    "contrastive_kernel",
}


@pytest.fixture(scope="module")
def binaries(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, list[Future[Lines]]]]:
    """Every source for every architecture, being compiled or read while the tests run."""
    if missing := missing_tool():
        pytest.skip(f"CUDA C++ cannot be compiled for a GPU: {missing}")
    with ThreadPoolExecutor(2) as pool:
        yield measured(pool, kept(request.config, "cubin"), tmp_path_factory.mktemp("shipped"))
        pool.shutdown(cancel_futures=True)


def _functions(binaries: dict[int, list[Future[Lines]]], architecture: int) -> Lines:
    return {name: line for job in binaries[architecture] for name, line in job.result().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(binaries: dict, architecture: int) -> None:
    assert _functions(binaries, architecture).keys() == KERNEL_OF.keys()


def test_all_architectures_are_climbed(binaries: dict) -> None:
    """The rung is reached where every architecture is; the tests above say which one is not."""
    assert all(
        _functions(binaries, architecture).keys() == KERNEL_OF.keys() for architecture in ARCHITECTURES
    )
    for kernel in set(KERNEL_OF.values()):
        record(f"cuda/{kernel}", 3)


def test_stays_within_the_budget(binaries: dict) -> None:
    budget = json.loads(BUDGET.read_text())
    if compiler() != budget["nvcc"]:
        pytest.skip(f"the budget is of nvcc {budget['nvcc']}, this is {compiler()}")
    for architecture in ARCHITECTURES:
        for function, line in _functions(binaries, architecture).items():
            allowed = budget["functions"][function][f"sm_{architecture}"]
            place = f"{function} for sm_{architecture}; python -m tests.gpu_proof.cuda_budget sets another"
            assert line["stack"] == 0, place
            assert line["registers"] <= allowed["registers"], place
            assert line["shared"] <= allowed["shared"], place
            assert line["blocks"] >= max(allowed["blocks"], 1), place
            assert line["load_bits"] >= allowed["load_bits"], place
            assert line["load_bits"] >= 128 or function not in WIDE_LOADS, place
    for kernel in set(KERNEL_OF.values()):
        record(f"cuda/{kernel}", 4)
