"""Every operator on every backend on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.calls import CALLS, inputs, outcome
from thawkit import ops
from thawkit.errors import ThawkitError

# of the largest absolute value of the truth, which half-precision inputs and outputs are rounded from
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def _against_float64(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    call = CALLS[name]
    given = inputs(call, device, dtype)
    try:
        with ops.use_backend(backend):
            got = outcome(call, given)
    except ThawkitError as error:
        if "was forced, but it" not in str(error):
            raise
        pytest.skip(str(error))
    exact = [x.detach().double().cpu().requires_grad_(x.requires_grad) for x in given]
    with ops.use_backend("reference"):
        truth = outcome(call, exact)
    for a, b in zip(got, truth, strict=True):
        assert a.device.type == device
        error = (a.double().cpu() - b).abs().max() / b.abs().max().clamp(min=1e-6)
        assert error < TOLERANCE[dtype], (name, backend)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU, and torch sees no CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["triton", "cuda", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_operators_on_a_gpu_equal_float64(name, backend, dtype):
    _against_float64(name, backend, dtype, "cuda")


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right_on_the_cpu(name):
    """The table itself, where there is no GPU."""
    _against_float64(name, "cpu", torch.float32, "cpu")


def test_the_table_has_every_operator():
    of_losses_and_layers = ops.OPERATORS.keys() - {"packed_dropout", "quantize"}
    assert {call.operator for call in CALLS.values()} == of_losses_and_layers
