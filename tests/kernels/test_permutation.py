"""Permutation sums on a Triton kernel, interpreted (or on a GPU, where there is one), against float64."""

from __future__ import annotations

import pytest
import torch
from tests.ops.conftest import relative_error

from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_panels, permutation_sums, subsets

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _rows(count, features, dtype=torch.float32, seed=0):
    z = torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 1.3 + 0.4
    return z.to(DEVICE, dtype)


def _against_float64(z, gamma, chosen, first, doubling=False):
    gamma, chosen = torch.tensor(gamma, device=DEVICE), chosen.to(DEVICE)
    with ops.use_backend("triton"):
        got = permutation_sums(z, gamma, chosen, first, doubling=doubling)
    with ops.use_backend("reference"):
        truth = permutation_sums(z.double(), gamma, chosen, first, doubling=doubling)
    for a, b in zip(got, truth, strict=True):
        assert a.dtype == torch.float64
        assert relative_error(a, b) < 6e-6  # exponents up to 40


@pytest.fixture(params=["one tile", "tiles of a few rows"])
def tiles(request, monkeypatch):
    if request.param != "one tile":
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 3000)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("gamma", [[0.3], [0.05, 0.1, 0.2, 0.4], [0.7, 0.1]])
@pytest.mark.parametrize("size", [(2, 1, 1, 1), (7, 3, 2, 5), (33, 32, 5, 31), (70, 40, 17, 129)])
def test_sums_equal_float64(size, gamma):
    count, first, features, permutations = size
    chosen = subsets(count, first, permutations, seed=3)
    _against_float64(_rows(count, features), gamma, chosen, first, doubling=len(gamma) == 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted(dtype):
    _against_float64(_rows(50, 8, dtype), [0.1, 0.3], subsets(50, 20, 9, seed=0), 20)


@pytest.mark.usefixtures("tiles")
def test_a_permutation_of_all_rows_and_of_none():
    chosen = torch.stack((torch.ones(60), torch.zeros(60)), 1).to(torch.uint8)
    for first in (0, 25, 60):
        _against_float64(_rows(60, 4), [0.2], chosen, first)


def test_no_rows():
    with ops.use_backend("triton"):
        none = torch.empty(0, 3, dtype=torch.uint8, device=DEVICE)
        within, from_chosen, sums = permutation_sums(_rows(0, 4), torch.ones(1, device=DEVICE), none, 0)
    assert (within == 0).all()
    assert (from_chosen == 0).all()
    assert sums.shape == (0, 2)


@pytest.mark.parametrize("far", [1e4, 1e20])
def test_rows_far_from_the_others_or_from_the_origin(far):
    z = _rows(60, 8)
    _against_float64(z + min(far, 1e4), [0.1], subsets(60, 30, 9, seed=0), 30)
    z[3] *= far
    _against_float64(z, [0.1], subsets(60, 30, 9, seed=0), 30)


@pytest.mark.parametrize("bandwidths", ["median", "mean"])
def test_the_test_of_two_samples_is_that_of_the_definition(bandwidths):
    x, y = _rows(25, 4), _rows(30, 4, seed=1) * 1.5
    found = {}
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            found[backend] = F.mmd_test(x, y, permutations=99, bandwidths=bandwidths, seed=0)
    got, truth = found["triton"], found["reference"]
    assert got.p_value == truth.p_value
    assert got.statistic == pytest.approx(truth.statistic, rel=1e-4)
    torch.testing.assert_close(got.null_sample, truth.null_sample, rtol=1e-3, atol=1e-6)


def test_operator_is_well_formed():
    z, chosen, gamma = _rows(9, 5), subsets(9, 4, 6, seed=0).to(DEVICE), torch.tensor([0.1, 0.2])
    arguments = z, gamma.to(DEVICE), chosen, 4, True, "triton"
    torch.library.opcheck(torch.ops.thawkit.permutation_sums.default, arguments)
