"""The operators' tests once more, with the kernels built for aarch64 and run by an emulator.

So that what Arm's vectors compute is exercised: they have tiles of their own, and their own conversions of
half precision. PyTorch stays this machine's; thawkit._C alone is the other architecture's (see remote.py).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aarch64 import build
from tests.gpu_proof.cuda_host.build import kept

ROOT = Path(__file__).parents[2]
OLDEST = "cortex-a72"  # the Raspberry Pi 4's, which lacks all that came after Arm v8.0

pytestmark = pytest.mark.skipif(
    bool(build.missing()), reason=f"aarch64 cannot be emulated here: {build.missing()}"
)


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    folder = kept(request.config, "aarch64")
    return os.environ | {
        "LD_PRELOAD": str(build.arena(folder)),
        "THAWKIT_SERVER": shlex.join([build.emulator(), "-cpu", OLDEST, str(build.server(folder))]),
        "THAWKIT_GEMM": "own",
    }


FAMILIES = {
    "pairwise": ["tests/ops/pairwise"],
    "focal": ["tests/ops/test_focal.py", "tests/ops/test_focal_softmax.py"],
    "frozen": ["tests/ops/frozen"],
}


# what would be about torch's compiler or memory, and what takes an emulator minutes
_LEFT_OUT = (
    "compile",
    "opcheck",
    "memory",
    "workspace_does_not_grow",
    "of_many_rows",
    "of_half_precision_has_shares_in_single",
)


@pytest.mark.slow
@pytest.mark.parametrize("tests", FAMILIES.values(), ids=FAMILIES)
def test_operators_equal_float64(tests, environment):
    done = _pytest(environment, *tests, "-k", " and ".join(f"not {name}" for name in _LEFT_OUT))
    assert done.returncode == 0, done.stdout[-3000:]


def test_kernels_are_the_ones_of_the_other_architecture(environment):
    """That of vectors of four, on a CPU that this process does not run on."""
    done = _python(
        environment,
        "from tests.aarch64 import remote\n"
        "remote.pytest_configure()\n"
        "from thawkit import _C\n"
        "print(_C.cpu_isa(), _C.cpu_lanes(), _C.cpu_isas(), _C.has_cuda)",
    )
    assert done.stdout.split() == ["baseline", "4", "baseline", "False"], done.stderr


def test_a_wrong_call_is_an_error_and_the_server_goes_on(environment):
    done = _python(
        environment,
        "from tests.aarch64 import remote\n"
        "remote.pytest_configure()\n"
        "from thawkit import _C\n"
        "for wrong in ((), (1.5,), ([0],)):\n"
        "    try: _C.pack(*wrong)\n"
        "    except ValueError as error: print(error)\n"
        "print(_C.cpu_lanes())",
    )
    said = ["too few arguments", "expected i, got f", "expected i, got l", "4"]
    assert done.stdout.splitlines() == said, done.stderr


def _pytest(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = ["-p", "tests.aarch64.remote", "-p", "no:cacheprovider"]
    return _run(environment, "-m", "pytest", "-q", "-x", "--numprocesses=0", *plugins, *arguments)


def _python(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    return _run(environment, "-c", code)


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
