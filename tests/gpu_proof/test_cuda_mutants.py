"""Rung 2: bugs planted in the CUDA kernels, one at a time, are caught by the checks of rung 1."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from .cuda_checks import CHECKS, KERNELS, UNITS
from .cuda_checks.registry import Check
from .cuda_host import Build, Host
from .cuda_host.build import ROOT
from .cuda_mutants import COMMON, FOCAL, MUTANTS, Mutant
from .ladder import record

# What hardly any bug needs: without half precision a source compiles in half the time.
HALF = """    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
"""
HEAD = '#include "cuda/common.cuh"\n'
POWER_OF_ONE = "  if (a.gamma == 1.f) return focal_as<FocalPower::kOne, Options, T>(a, stream);\n"
_caught: dict[str, int] = {}


def planted(mutant: Mutant) -> dict[str, str]:
    text = (ROOT / "csrc" / mutant.file).read_text()
    assert text.count(mutant.old) == 1, (
        f"stands {text.count(mutant.old)} times in {mutant.file}: {mutant.old}"
    )
    edited = {mutant.file: text.replace(mutant.old, mutant.new)}
    if not mutant.half:
        _spare(edited, COMMON, HALF)
    if UNITS[mutant.kernel] == "focal" and mutant.old not in POWER_OF_ONE:
        _spare(edited, FOCAL, POWER_OF_ONE)
    return edited


def _spare(edited: dict[str, str], file: str, part: str) -> None:
    text = edited.get(file) or (ROOT / "csrc" / file).read_text()
    assert part in text
    edited[file] = text.replace(part, "")


@pytest.fixture(scope="module")
def libraries(request: pytest.FixtureRequest, cuda_build: Build) -> Iterator[dict[Mutant, Future[Path]]]:
    """The mutants that this session asks for, being built while the tests run."""
    cuda_build.library()
    wanted = [item.callspec.params["mutant"] for item in request.session.items if _is_mutant(item)]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {m: pool.submit(cuda_build.edited, UNITS[m.kernel], m.kernel, planted(m)) for m in wanted}
        pool.shutdown(cancel_futures=True)


def _is_mutant(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and "mutant" in getattr(getattr(item, "callspec", None), "params", {})


def fault(host: Host, mutant: Mutant) -> str:
    """What the kernel's checks say; empty: nothing."""
    for check in _in_turn(mutant.kernel):
        in_single = check.case.get("dtype", torch.float32) == torch.float32
        if in_single or mutant.half:
            try:
                check(functools.partial(host.running, order="shuffled"))
            except (AssertionError, RuntimeError) as error:
                return f"{check.name}: {error}"
    return ""


@functools.cache
def _in_turn(kernel: str) -> list[Check]:
    """The kernel's checks, one case of each in turn: most bugs are seen by some check, whatever its case."""
    cases: dict[object, list[Check]] = {}
    for check in CHECKS:
        if check.kernel == kernel:
            cases.setdefault(check.function, []).append(check)
    turns = itertools.zip_longest(*cases.values())
    return [check for turn in turns for check in turn if check is not None]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.kernel}: {m.name}")
def test_planted_bug_is_caught(libraries: dict[Mutant, Future[Path]], mutant: Mutant) -> None:
    path = libraries[mutant].result()
    found = fault(Host(path), mutant)
    path.unlink()
    assert bool(found) != bool(mutant.harmless), found or "no check saw it"
    _caught[mutant.kernel] = _caught.get(mutant.kernel, 0) + 1


@pytest.mark.parametrize("unit", sorted(set(UNITS.values())))
def test_nothing_is_found_where_nothing_is_planted(cuda_build: Build, unit: str) -> None:
    """That a build of one kernel alone is sound: else every planted bug would count as caught."""
    kernel = next(kernel for kernel in KERNELS if UNITS[kernel] == unit)
    sound = Mutant(kernel, "none", f"cuda/{unit}.cu", HEAD, HEAD)
    assert not fault(Host(cuda_build.edited(unit, kernel, planted(sound))), sound)


@pytest.mark.parametrize("kernel", KERNELS)
def test_ten_bugs_of_a_kernel_were_caught_or_explained(kernel: str) -> None:
    mutants = [mutant for mutant in MUTANTS if mutant.kernel == kernel]
    assert len(mutants) >= 10
    assert sum(not mutant.harmless for mutant in mutants) >= 10
    if _caught.get(kernel) == len(mutants):
        record(f"cuda/{kernel}", 2)
