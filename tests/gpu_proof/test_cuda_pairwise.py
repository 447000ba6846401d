"""The pairwise losses on the CUDA backend, its kernels those built for the CPU, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.conftest import relative_error, values_and_gradients
from tests.ops.pairwise.panel_losses import losses
from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_panels

LOSSES = losses("cpu")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("panel_bytes", [32 << 20, 2000], ids=["one panel", "panels of a few rows"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_and_gradients_equal_float64(
    loss: object, dtype: torch.dtype, panel_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_panels, "PANEL_BYTES", panel_bytes)
    inputs = _random(20, 24, dtype=dtype), _random(53, 24, dtype=dtype, seed=1), torch.tensor(4.0)
    got = values_and_gradients(loss, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(loss, *(x.double() for x in inputs))
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.usefixtures("on_cuda")
def test_rows_of_weight_zero_may_hold_anything() -> None:
    q, k = _random(6, 5), _random(9, 5, seed=1)
    q[2] = torch.nan
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    value, dq, dk = values_and_gradients(lambda q, k: F.info_nce(q, k, sample_weight=weight), q, k)
    assert value.isfinite()
    assert dk.isfinite().all()
    assert (dq[2] == 0).all()
