"""The tests of single features against scipy's."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from thawkit.drift.features import feature_shifts, holm, kolmogorov_p_values, ks_statistics


@pytest.mark.parametrize("sizes", [(2, 2), (7, 30), (50, 50), (400, 90)])
@pytest.mark.parametrize("ties", [False, True])
def test_statistics_are_scipys(sizes, ties):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 6, generator=generator).double() for n in sizes)
    y = y + torch.linspace(0, 1, 6)
    if ties:
        x, y = (2 * x).round(), (2 * y).round()
    got = ks_statistics(x, y)
    expected = [stats.ks_2samp(a, b).statistic for a, b in zip(x.t().numpy(), y.t().numpy(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(20, 30), (50, 50), (400, 90)])
def test_p_values_are_near_the_exact_ones(sizes):
    """Within 0.02, or 15 %, from n m / (n + m) = 12 up."""
    n, m = sizes
    ks = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)
    got = kolmogorov_p_values(ks, n, m)
    size = n * m / (n + m)
    expected = torch.tensor([stats.kstwo.sf(d, round(size)) for d in ks.tolist()], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0.15, atol=0.02)
    assert kolmogorov_p_values(torch.zeros(1, dtype=torch.float64), n, m).item() == 1


def test_holm_by_its_definition():
    p = torch.tensor([0.04, 0.01, 0.5, 0.012])
    # ascending 0.01, 0.012, 0.04, 0.5 times 4, 3, 2, 1, none below an earlier one
    torch.testing.assert_close(holm(p), torch.tensor([0.08, 0.04, 0.5, 0.04]))
    assert holm(torch.tensor([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_shifts_are_sorted_and_measured_in_the_references_deviations():
    x = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0]]).double()
    y = torch.tensor([[0.0, 6.0, 1.0], [3.0, 7.0, 1.0]]).double()
    found = feature_shifts(x, y, ["a", "b", "c"])
    assert [f.name for f in found] == ["b", "a", "c"]
    assert found[0].mean_shift == float("inf")
    assert found[0].ks == 1.0
    assert found[1].mean_shift == pytest.approx(0.5)
    assert found[2].mean_shift == 0
    assert found[2].p_value == 1
