"""The compiled kernels of all architectures, each group of them in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tests.gpu_proof.triton_checks.architectures import ARCHITECTURES
from tests.gpu_proof.triton_checks.family import KERNELS

Resources = dict[str, dict[str, Any]]

# Of one group, in a process of its own, the first is compiled from the start, and others from the stage up to
# which their kernels are the same. Of all configurations that was so when they were grouped; of each family,
# compile_all looks at one again.
_GROUPS: tuple[tuple[int, dict[int, str]], ...] = (
    (90, {100: "ttir", 120: "ttir"}),
    (87, {89: "ptx", 80: "ttgir"}),
)
assert {*ARCHITECTURES} == {architecture for first, others in _GROUPS for architecture in (first, *others)}


def _compile(first: int, others: dict[int, str]) -> dict[int, Resources]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu_proof.triton_checks.compile_all", str(first)]
    command += [f"{other}:{stage}" for other, stage in others.items()]
    done = subprocess.run(
        command, env=environment, cwd=KERNELS.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"compiling for sm_{first} and {[*others]} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {architecture: found[str(architecture)] for architecture in (first, *others)}


@functools.cache
def _started() -> dict[int, Future[dict[int, Resources]]]:
    pool = ThreadPoolExecutor(len(_GROUPS))
    started = [(first, others, pool.submit(_compile, first, others)) for first, others in _GROUPS]
    return {architecture: job for first, others, job in started for architecture in (first, *others)}


def compiled(architecture: int) -> Resources:
    """Return the resources of each kernel by ``family: configuration: kernel number``.

    The first call starts all architectures.

    Raises:
        RuntimeError: a kernel does not compile; with what Triton says.
    """
    return _started()[architecture].result()[architecture]
