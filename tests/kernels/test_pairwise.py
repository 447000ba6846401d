"""The Triton kernels under Triton's interpreter (or on a GPU, where there is one) against float64."""

from __future__ import annotations

import pytest
import torch
from tests.ops.conftest import relative_error, values_and_gradients

from thawkit import ops
from thawkit.losses import functional as F

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 7, 3), (64, 64, 16), (70, 131, 33)])
def test_info_nce_equals_float64(sizes, normalize, dtype):
    rows, keys, features = sizes
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(rows, features, generator=generator).to(DEVICE, dtype)
    k = torch.randn(keys, features, generator=generator).to(DEVICE, dtype)
    scale = torch.tensor(3.0 if normalize else 0.5, device=DEVICE)
    function = lambda q, k, s: F.info_nce(q, k, logit_scale=s, normalize=normalize)
    with ops.use_backend("triton"):
        got = values_and_gradients(function, q, k, scale)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, q.double(), k.double(), scale.double())
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


def test_unwanted_gradients_launch_nothing(monkeypatch):
    from thawkit.kernels import pairwise as kernels

    launched = []
    for name in ("info_nce_forward", "info_nce_backward_queries", "info_nce_backward_keys"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, f=original, n=name: (launched.append(n), f(*a)))
    q, k = torch.randn(8, 4, device=DEVICE), torch.randn(8, 4, device=DEVICE)
    with ops.use_backend("triton"):
        F.info_nce(q, k)
        assert launched == ["info_nce_forward"]
        launched.clear()
        F.info_nce(q, k.clone().requires_grad_()).backward()
    assert launched == ["info_nce_forward", "info_nce_backward_keys"]


def test_many_features_are_declined_not_wrong():
    q = torch.randn(3, 600, device=DEVICE)
    with ops.use_backend("triton"), pytest.raises(ValueError, match="at most 512 features"):
        F.info_nce(q, q)
