"""What all tests share."""

import os
import re
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core to itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Triton decides when it is imported whether it interprets, so the variable is set before anything can.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, for what they share is made once in each.

    Those that need the CUDA sources built for the CPU share that; a family of Triton kernels that is
    interpreted shares nothing with another, and goes where there is time. (xdist_group would say so, but
    pytest-xdist 3.8 drops them with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if re.match(r"tests/gpu_proof/test_cuda_(?!binary)", nodeid):
                return "cuda_build"
            alone = re.match(r"tests/gpu_proof/test_triton_(mutants|parity)", nodeid)
            return nodeid if alone else nodeid.split("::")[0]

    return Scheduling(config, log)


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from threads, and on a busy machine lose a great deal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
