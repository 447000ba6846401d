"""What all tests share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core to itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Triton decides when it is imported whether it interprets, so the variable is set before anything can.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, and all that need the CUDA sources built for the CPU in one."""
    builds = {item.path for item in items if "cuda_build" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("cuda_build" if item.path in builds else str(item.path)))


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from threads, and on a busy machine lose a great deal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
