"""The compiled kernels of each architecture, each in a process of its own, two at a time."""

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


def _compile(architecture: int) -> Resources:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu_proof.triton_checks.compile_all", str(architecture)]
    done = subprocess.run(
        command, env=environment, cwd=KERNELS.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"compiling for sm_{architecture} failed:\n{done.stderr[-4000:]}")
    resources: Resources = json.loads(done.stdout.splitlines()[-1])
    return resources


@functools.cache
def _started() -> dict[int, Future[Resources]]:
    pool = ThreadPoolExecutor(2)
    return {architecture: pool.submit(_compile, architecture) for architecture in ARCHITECTURES}


def compiled(architecture: int) -> Resources:
    """Return the resources of each kernel by ``family: configuration: kernel number``.

    The first call starts all architectures.

    Raises:
        RuntimeError: a kernel does not compile; with what Triton says.
    """
    return _started()[architecture].result()
