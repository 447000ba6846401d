"""The compiled kernels of all architectures, each group of them in a process of its own, two at a time."""

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

# Those of one group have the same PTX but for the line that names them, so it is made once. Of all
# configurations that was so when they were grouped; compile_all looks at one of each kind again.
_GROUPS = ((87, 89), (80,), (90,), (100,), (120,))
assert {*ARCHITECTURES} == {architecture for group in _GROUPS for architecture in group}


def _compile(group: tuple[int, ...]) -> dict[int, Resources]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu_proof.triton_checks.compile_all", *map(str, group)]
    done = subprocess.run(
        command, env=environment, cwd=KERNELS.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"compiling for sm_{group} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {architecture: found[str(architecture)] for architecture in group}


@functools.cache
def _started() -> dict[int, Future[dict[int, Resources]]]:
    pool = ThreadPoolExecutor(2)
    started = {group: pool.submit(_compile, group) for group in _GROUPS}
    return {architecture: job for group, job in started.items() for architecture in group}


def compiled(architecture: int) -> Resources:
    """Return the resources of each kernel by ``family: configuration: kernel number``.

    The first call starts all architectures.

    Raises:
        RuntimeError: a kernel does not compile; with what Triton says.
    """
    return _started()[architecture].result()[architecture]
