"""Rung 2: bugs planted in the CUDA kernels, one at a time, are caught by the checks of rung 1."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from .cuda_checks import CHECKS, KERNELS, UNITS
from .cuda_host import Build, Host
from .cuda_host.build import ROOT
from .cuda_mutants import COMMON, MUTANTS, Mutant
from .ladder import record

HALF = """    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
"""
_caught: dict[str, int] = {}


def planted(mutant: Mutant) -> dict[str, str]:
    text = (ROOT / "csrc" / mutant.file).read_text()
    assert text.count(mutant.old) == 1, (
        f"stands {text.count(mutant.old)} times in {mutant.file}: {mutant.old}"
    )
    edited = {mutant.file: text.replace(mutant.old, mutant.new)}
    common = edited.get(COMMON, (ROOT / "csrc" / COMMON).read_text())
    assert HALF in common
    if not mutant.half:  # float32 alone compiles in half the time
        edited[COMMON] = common.replace(HALF, "")
    return edited


@pytest.fixture(scope="module")
def libraries(request: pytest.FixtureRequest, cuda_build: Build) -> Iterator[dict[Mutant, Future[Path]]]:
    """The mutants that this session asks for, being built while the tests run."""
    cuda_build.library()
    wanted = [item.callspec.params["mutant"] for item in request.session.items if _is_mutant(item)]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {m: pool.submit(cuda_build.library, UNITS[m.kernel], planted(m)) for m in wanted}
        pool.shutdown(cancel_futures=True)


def _is_mutant(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and "mutant" in getattr(getattr(item, "callspec", None), "params", {})


def fault(host: Host, mutant: Mutant) -> str:
    """What the kernel's checks say; empty: nothing."""
    for check in CHECKS:
        in_single = check.case.get("dtype", torch.float32) == torch.float32
        if check.kernel == mutant.kernel and (in_single or mutant.half):
            try:
                check(functools.partial(host.running, order="shuffled"))
            except (AssertionError, RuntimeError) as error:
                return f"{check.name}: {error}"
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.kernel}: {m.name}")
def test_planted_bug_is_caught(libraries: dict[Mutant, Future[Path]], mutant: Mutant) -> None:
    path = libraries[mutant].result()
    found = fault(Host(path), mutant)
    path.unlink()
    assert bool(found) != bool(mutant.harmless), found or "no check saw it"
    _caught[mutant.kernel] = _caught.get(mutant.kernel, 0) + 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_ten_bugs_of_a_kernel_were_caught_or_explained(kernel: str) -> None:
    mutants = [mutant for mutant in MUTANTS if mutant.kernel == kernel]
    assert len(mutants) >= 10
    assert sum(not mutant.harmless for mutant in mutants) >= 10
    if _caught.get(kernel) == len(mutants):
        record(f"cuda/{kernel}", 2)
