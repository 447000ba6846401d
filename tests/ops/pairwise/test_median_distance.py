"""The exact median distance of all pairs against torch's median of them."""

from __future__ import annotations

import pytest
import torch

from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import median_squared_distance
from thawkit.ops.pairwise.reference import order


def by_definition(x, y):
    z = torch.cat((x, y)).double()
    return torch.nn.functional.pdist(z).square().median()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 1, 3), (3, 11, 4), (36, 36, 20), (101, 67, 33), (900, 700, 5)]
)
def test_median_is_that_of_all_pairs(sizes, threads):
    n, m, features = sizes
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, features, generator=generator), torch.randn(m, features, generator=generator) + 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ops.use_backend("cpu"):
            got = median_squared_distance(x, y)
            assert torch.equal(got, median_squared_distance(x, y))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, by_definition(x, y), rtol=1e-5, atol=1e-12)
    with ops.use_backend("reference"):
        exact = median_squared_distance(x.double(), y.double())
    torch.testing.assert_close(exact, by_definition(x, y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_median_of_any_scale_and_place(scale, offset):
    generator = torch.Generator().manual_seed(0)
    x, y = ((torch.randn(60, 4, generator=generator) + offset) * scale for _ in range(2))
    torch.testing.assert_close(median_squared_distance(x, y), by_definition(x, y), rtol=1e-4, atol=0)


def test_median_of_rows_most_of_which_coincide():
    x, y = torch.ones(20, 3), torch.cat((torch.ones(20, 3), torch.zeros(2, 3)))
    assert median_squared_distance(x, y).item() == 0
    x.requires_grad_()
    value = F.mmd(x, y, bandwidths="median")
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_median_of_what_is_no_number(value):
    x, y = torch.randn(9, 3), torch.randn(8, 3)
    x[4, 1] = value
    assert median_squared_distance(x, y).isnan()


def test_a_single_row_is_at_no_distance():
    assert median_squared_distance(torch.ones(1, 3), torch.ones(0, 3)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
def test_ranks_are_those_of_the_sorted_matrix(ordered, dtype, monkeypatch):
    monkeypatch.setattr(order, "_ENTRIES", 3 * 21)  # several panels
    z = torch.randn(21, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    z[5] = z[11]
    d2 = torch.cdist(z.double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    d2 = d2.flatten() if ordered else d2[tuple(torch.triu_indices(21, 21, 1))]
    ascending = d2.sort().values
    for rank in (0, 1, 20, 21, 22, 104, 105, len(d2) - 1):
        got = order.ranked_squared_distance(z, rank, ordered=ordered)
        torch.testing.assert_close(got.double(), ascending[rank], rtol=1e-4, atol=1e-5)
    z[3, 1] = torch.nan
    assert order.ranked_squared_distance(z, 7, ordered=ordered).isnan()


def test_the_reference_stores_no_matrix_of_many_rows():
    x, y = torch.randn(900, 4).double(), torch.randn(700, 4).double()
    expected = by_definition(x, y)
    torch.testing.assert_close(median_squared_distance(x, y), expected, rtol=1e-9, atol=0)
    compiled = torch.compile(median_squared_distance, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), expected, rtol=1e-9, atol=0)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        order.ranked_squared_distance(torch.cat((x, y)).repeat(2, 1), 1000)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < 3200 * 3200 * 8 / 2


def test_the_median_bandwidth_is_the_median_distance():
    x, y = torch.randn(30, 5), torch.randn(40, 5) + 0.3
    s = by_definition(x, y).sqrt()[None]
    for kernel in ("rbf", "laplace", "imq"):
        got = F.mmd(x, y, kernel=kernel, bandwidths="median")
        torch.testing.assert_close(got, F.mmd(x, y, kernel=kernel, bandwidths=s), rtol=1e-4, atol=1e-6)


def test_median_operator_is_well_formed():
    torch.library.opcheck(
        torch.ops.thawkit.median_squared_distance.default, (torch.randn(9, 3), torch.randn(4, 3), "cpu")
    )
