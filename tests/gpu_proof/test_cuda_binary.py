"""Rungs 3 and 4: every CUDA kernel compiles for every architecture, within the budget that git keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .cuda_binary import ARCHITECTURES, BUDGET, KERNEL_OF, compiler, missing_tool
from .cuda_budget import measured
from .cuda_host.build import CUDA, kept
from .ladder import record

Lines = dict[str, dict[str, int]]
# whose loads are of 16 bytes
WIDE_LOADS = {
    *("focal_kernel", "focal_options_kernel", "softmax_kernel", "clip_kernel", "sigmoid_kernel"),
    *("tile_kernel", "rates_kernel", "values_kernel", "digits_kernel"),
    *("best_of_groups_kernel", "keys_of_groups_kernel"),
    *("distances_kernel", "all_triplets_kernel", "semihard_triplets_kernel", "hardest_triplet_kernel"),
    "contrastive_kernel",
}


@pytest.fixture(scope="module")
def binaries(request: pytest.FixtureRequest) -> Iterator[dict[tuple[Path, int], Future[Lines]]]:
    """Every source for every architecture, being compiled while the tests run."""
    if missing := missing_tool():
        pytest.skip(f"CUDA C++ cannot be compiled for a GPU: {missing}")
    folder = kept(request.config, "cubin")
    with ThreadPoolExecutor(2) as pool:
        yield {(s, a): pool.submit(measured, s, a, folder) for s in CUDA for a in ARCHITECTURES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("source", CUDA, ids=lambda path: path.stem)
def test_compiles_for_every_architecture(binaries: dict, source: Path) -> None:
    functions = [set(binaries[source, architecture].result()) for architecture in ARCHITECTURES]
    assert functions[0]
    assert all(found == functions[0] for found in functions)
    for function in functions[0]:
        record(f"cuda/{KERNEL_OF[function]}", 3)


@pytest.mark.parametrize("source", CUDA, ids=lambda path: path.stem)
def test_stays_within_the_budget(binaries: dict, source: Path) -> None:
    budget = json.loads(BUDGET.read_text())
    if compiler() != budget["nvcc"]:
        pytest.skip(f"the budget is of nvcc {budget['nvcc']}, this is {compiler()}")
    within = set()
    for architecture in ARCHITECTURES:
        for function, line in binaries[source, architecture].result().items():
            allowed = budget["functions"][function][f"sm_{architecture}"]
            place = f"{function} for sm_{architecture}; python -m tests.gpu_proof.cuda_budget sets another"
            assert line["stack"] == 0, place
            assert line["registers"] <= allowed["registers"], place
            assert line["shared"] <= allowed["shared"], place
            assert line["blocks"] >= max(allowed["blocks"], 1), place
            assert line["load_bits"] >= allowed["load_bits"], place
            assert line["load_bits"] >= 128 or function not in WIDE_LOADS, place
            within.add(function)
    for function in within:
        record(f"cuda/{KERNEL_OF[function]}", 4)
