"""MMD, its permutation sums and its median on the CUDA backend, built for the CPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import relative_error, values_and_gradients
from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_panels, median_squared_distance, permutation_sums

VALUE = {torch.float32: 5e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}
GRADIENT = {torch.float32: 5e-6, torch.float16: 8e-3, torch.bfloat16: 8e-3}

pytestmark = pytest.mark.usefixtures("on_cuda")


@pytest.fixture(params=["one tile", "tiles of a few rows"], autouse=True)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one tile":
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 3000)


def _samples(dtype: torch.dtype = torch.float32, features: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, features, generator=generator) for n in (20, 33))
    return x.to(dtype), (y + 0.5).to(dtype)


def _against_float64(loss: Any, *inputs: Tensor, slack: float = 1) -> None:
    got = values_and_gradients(loss, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(loss, *(x.double() for x in inputs))
    dtype = inputs[0].dtype
    for a, b, tolerance in zip(got, truth, (VALUE, *[GRADIENT] * len(inputs)), strict=True):
        assert relative_error(a, b) < slack * tolerance[dtype]


_WEIGHTS = torch.linspace(0, 2, 20), torch.linspace(2, 1, 33)
_CLASSES = torch.arange(20) % 4, torch.arange(33) % 5
OPTIONS: dict[str, dict[str, Any]] = {
    "rbf": {},
    "rbf, four times": {"bandwidths": (4.0, 3)},
    "rbf, median": {"bandwidths": "median"},
    "laplace": {"kernel": "laplace"},
    "imq": {"kernel": "imq"},
    "energy": {"kernel": "energy"},
    "poly": {"kernel": "poly"},
    "weights": {"weights": _WEIGHTS},
    "classes": {"class_conditional": _CLASSES},
    "a linear kernel of classes": {"class_conditional": _CLASSES, "kernel": "linear"},
}


@pytest.mark.parametrize("dtype", GRADIENT)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_mmd_equals_float64(options: dict[str, Any], estimator: str, dtype: torch.dtype) -> None:
    _against_float64(lambda x, y: F.mmd(x, y, estimator=estimator, **options), *_samples(dtype), slack=2)


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
def test_learned_bandwidths(kernel: str) -> None:
    bandwidths = torch.tensor([0.5, 2.0, 3.0, 1.0, 4.0])
    loss = lambda x, y, s: F.mmd(x, y, kernel=kernel, bandwidths=s)
    _against_float64(loss, *_samples(), bandwidths, slack=2)


@pytest.mark.parametrize(
    "kernels", [("rbf", "rbf"), ("laplace", "poly"), ("energy", "rbf", "linear"), ("imq",) * 8]
)
def test_joint_mmd(kernels: tuple[str, ...]) -> None:
    samples = [z for i in range(len(kernels)) for z in _samples(features=3 + i, seed=i)]
    loss = lambda *samples: F.joint_mmd(samples[::2], samples[1::2], kernel=list(kernels))
    _against_float64(loss, *samples, slack=2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_special_values_spread(value: float) -> None:
    x, y = _samples()
    x[3, 1] = value
    assert F.mmd(x, y, bandwidths=torch.tensor([2.0])).isnan()


@pytest.mark.parametrize("dtype", VALUE)
def test_median_is_that_of_all_pairs(dtype: torch.dtype) -> None:
    x, y = _samples(dtype)
    truth = torch.nn.functional.pdist(torch.cat((x, y)).double()).square().median()
    torch.testing.assert_close(median_squared_distance(x, y), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("gamma", [[0.3], [0.05, 0.1, 0.2, 0.4]])
def test_permutation_sums_equal_float64(gamma: list[float]) -> None:
    z = torch.cat(_samples())
    chosen = torch.randint(2, (53, 40), generator=torch.Generator().manual_seed(0)).byte()
    got = permutation_sums(z, torch.tensor(gamma), chosen, 20, doubling=len(gamma) == 4)
    with ops.use_backend("reference"):
        truth = permutation_sums(z.double(), torch.tensor(gamma), chosen, 20)
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < 6e-6
