"""The Triton kernels compile with the oldest Triton that the package asks for, on sm_90."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.triton_checks.family import KERNELS

ROOT = KERNELS.parent
_FLOOR = re.search(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
assert _FLOOR is not None
OLDEST = _FLOOR[1]


def _holds_it(folder: Path) -> bool:
    found = importlib.metadata.distributions(path=[str(folder)])
    return any(d.name == "triton" and f"{d.version}.".startswith(f"{OLDEST}.") for d in found)


@pytest.fixture(scope="module")
def oldest(request: pytest.FixtureRequest) -> Path:
    """A folder with that Triton: the one that the environment names, or one of pytest's cache."""
    if named := os.environ.get("THAWKIT_OLDEST_TRITON"):
        assert _holds_it(Path(named)), f"THAWKIT_OLDEST_TRITON: no triton {OLDEST} in {named}"
        return Path(named)
    folder = Path(request.config.cache.mkdir(f"triton-{OLDEST}"))
    if not _holds_it(folder):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "0", "--no-deps"]
        command += ["--upgrade", "--target", str(folder), f"triton=={OLDEST}.*"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"triton {OLDEST} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_every_configuration_compiles(oldest, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(oldest), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.gpu_proof.triton_checks.compile_all", "90"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = json.loads(done.stdout.splitlines()[-1])["90"]
    assert {kernel.split(": ", 1)[0] for kernel in kernels} == set(FAMILIES)
    assert not {name for name, needs in kernels.items() if not needs["blocks"]}, (
        "do not fit on a multiprocessor"
    )
