"""The median distance on a Triton kernel, interpreted (or on a GPU where there is one), against all pairs."""

from __future__ import annotations

import pytest
import torch

from thawkit import ops
from thawkit.ops.pairwise import gpu_panels, median_squared_distance

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _by_definition(x, y):
    z = torch.cat((x, y)).double()
    return torch.nn.functional.pdist(z).square().median()


def _samples(n, m, features, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, features, generator=generator), torch.randn(m, features, generator=generator) + 1
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def _found(x, y):
    with ops.use_backend("triton"):
        return median_squared_distance(x, y)


@pytest.mark.parametrize("panel", [32 << 20, 3000])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3), (3, 11, 4), (36, 36, 20), (101, 67, 33)])
def test_median_is_that_of_all_pairs(sizes, panel, monkeypatch):
    monkeypatch.setattr(gpu_panels, "PANEL_BYTES", panel)
    x, y = _samples(*sizes)
    torch.testing.assert_close(_found(x, y), _by_definition(x, y), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_median_of_half_precision(dtype):
    x, y = _samples(20, 33, 5, dtype)
    torch.testing.assert_close(_found(x, y), _by_definition(x, y), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_median_of_any_scale_and_place(scale, offset):
    x, y = ((z + offset) * scale for z in _samples(60, 60, 4))
    torch.testing.assert_close(_found(x, y), _by_definition(x, y), rtol=1e-4, atol=0)


def test_median_of_rows_most_of_which_coincide():
    rows = _samples(1, 2, 30)
    x, y = rows[0].expand(20, 30), torch.cat((rows[0].expand(20, 30), rows[1]))
    assert _found(x, y).item() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_median_of_what_is_no_number(value):
    x, y = _samples(9, 8, 3)
    x[4, 1] = value
    assert _found(x, y).isnan()


def test_a_single_row_is_at_no_distance():
    assert _found(torch.ones(1, 3, device=DEVICE), torch.ones(0, 3, device=DEVICE)).item() == 0


def test_operator_is_well_formed():
    op = torch.ops.thawkit.median_squared_distance.default
    torch.library.opcheck(op, (*_samples(9, 4, 3), "triton"))
