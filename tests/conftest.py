"""What all tests share."""

import os

import pytest
import torch

# Triton decides when it is imported whether it interprets, so the variable is set before anything can.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from threads, and on a busy machine lose a great deal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
