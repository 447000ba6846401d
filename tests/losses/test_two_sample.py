"""The permutation test of MMD: its level and power, its statistics by their definition, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from thawkit import losses, ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F


def two_samples(n, m, features, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, torch.randn(m, features, generator=generator) + shift


def statistic_by_its_definition(x, y, bandwidths, estimator):
    k = lambda u, v: sum(torch.exp(-(torch.cdist(u, v) ** 2) / (2 * s * s)) for s in bandwidths)
    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    if estimator == "biased":
        return xx.mean() + yy.mean() - 2 * xy.mean()
    off = lambda values: (values.sum() - values.trace()) / (len(values) * (len(values) - 1))
    return off(xx) + off(yy) - 2 * xy.mean()


# ---- values


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("sizes", [(2, 2), (3, 11), (36, 20), (60, 70)])
def test_statistics_of_all_permutations(sizes, estimator):
    n, m = sizes
    x, y = two_samples(n, m, 4, 0.3)
    options = {"bandwidths": torch.tensor([1.0, 3.0]), "estimator": estimator, "seed": 11}
    got = F.mmd_test(x, y, 50, **options)
    z = torch.cat((x, y)).double()
    deals = ops.pairwise.subsets(n + m, n, 51, seed=11)[:, 1:].bool()
    expected = [
        statistic_by_its_definition(z[deal], z[~deal], (1.0, 3.0), estimator) for deal in deals.unbind(1)
    ]
    torch.testing.assert_close(got.null_sample, torch.stack(expected), rtol=1e-5, atol=3e-7)
    observed = statistic_by_its_definition(x.double(), y.double(), (1.0, 3.0), estimator).item()
    assert got.statistic == pytest.approx(observed, abs=3e-7)
    reached = sum(value >= observed - 1e-12 for value in expected)
    assert got.p_value == pytest.approx((1 + int(reached)) / 51)
    wide = F.mmd_test(x.double(), y.double(), 50, **options)
    torch.testing.assert_close(wide.null_sample, torch.stack(expected), rtol=1e-10, atol=1e-13)
    assert wide.p_value == got.p_value


@pytest.mark.parametrize("bandwidths", ["mean", (3.0, 3), torch.tensor([0.7, 2.0])])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_statistic_is_that_of_mmd(bandwidths, estimator):
    x, y = two_samples(40, 25, 6, 0.2)
    got = F.mmd_test(x, y, 5, bandwidths=bandwidths, estimator=estimator)
    expected = F.mmd(x, y, bandwidths=bandwidths, estimator=estimator)
    assert got.statistic == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def kernel_by_its_name(name, u, v, s):
    d2 = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    return {
        "rbf": lambda: torch.exp(-d2[..., None] / (2 * s**2)).sum(-1),
        "laplace": lambda: torch.exp(-d2.sqrt()[..., None] / s).sum(-1),
        "imq": lambda: (s**2 / (s**2 + d2[..., None])).sum(-1),
        "energy": lambda: -d2.sqrt(),
        "linear": lambda: u @ v.t(),
        "poly": lambda: (u @ v.t() / u.shape[1] + 0.5) ** 2,
    }[name]()


def loop_over_deals(x, y, deals, name, s, estimator):
    """The squared MMD of each deal and of the samples as they are, from the whole kernel matrix."""
    z, n = torch.cat((x, y)).double(), len(x)
    values = kernel_by_its_name(name, z, z, s)
    if estimator == "unbiased":
        values = values.clone().fill_diagonal_(0)

    def of(deal):
        a, b = deal.double(), (~deal).double()
        m = len(z) - n
        own = (1 / n**2, 1 / m**2) if estimator == "biased" else (1 / (n * (n - 1)), 1 / (m * (m - 1)))
        return own[0] * a @ values @ a + own[1] * b @ values @ b - 2 / (n * m) * a @ values @ b

    return torch.stack([of(deal) for deal in deals.unbind(1)]), of(torch.arange(len(z)) < n)


EVERY_KERNEL = ("rbf", "laplace", "imq", "energy", "linear", "poly")


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize("sizes", [(2, 3), (33, 20), (40, 70)])
def test_every_kernel_is_the_loop_over_permutations(sizes, kernel, estimator, monkeypatch):
    from thawkit.ops.pairwise.reference import permutation

    n, m = sizes
    x, y = two_samples(n, m, 4, 0.3)
    s = torch.tensor([0.8, 3.0])
    options = {"kernel": kernel, "estimator": estimator, "seed": 11, "degree": 2, "offset": 0.5}
    if kernel in ("rbf", "laplace", "imq"):
        options["bandwidths"] = s
    deals = ops.pairwise.subsets(n + m, n, 61, seed=11)[:, 1:].bool()
    expected, observed = loop_over_deals(x, y, deals, kernel, s.double(), estimator)
    p = (1 + int((expected >= observed - 1e-12).sum())) / 61
    monkeypatch.setattr(permutation, "_ENTRIES", 7 * (n + m))  # several panels, and permutations in parts
    for single in (False, True):
        got = F.mmd_test(*((x, y) if single else (x.double(), y.double())), 60, **options)
        close = {"rtol": 1e-5, "atol": 3e-7} if single and kernel == "rbf" else {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(got.null_sample, expected, **close)
        assert got.statistic == pytest.approx(observed.item(), rel=close["rtol"], abs=close["atol"])
        assert got.p_value == p
        assert got.bandwidth.numel() == (2 if "bandwidths" in options else 0)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize("bandwidths", ["mean", "median", (3.0, 3)])
def test_bandwidths_of_every_kernel_are_those_of_mmd(bandwidths, kernel):
    x, y = two_samples(40, 25, 6, 0.2)
    scaled = kernel in ("rbf", "laplace", "imq")
    options = {"kernel": kernel} | ({"bandwidths": bandwidths} if scaled else {})
    got = F.mmd_test(x, y, 5, estimator="biased", **options)
    assert got.statistic == pytest.approx(F.mmd(x, y, **options).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("features", [3, 300])
@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_any_scale(kernel, scale, features):
    x, y = (s * scale for s in two_samples(30, 20, features, 0.2))
    got = F.mmd_test(x, y, 99, kernel=kernel, seed=0)
    wide = F.mmd_test(x.double(), y.double(), 99, kernel=kernel, seed=0)
    assert got.p_value == wide.p_value
    size = wide.null_sample.abs().max().item()
    torch.testing.assert_close(got.null_sample, wide.null_sample, rtol=1e-4, atol=1e-4 * size)
    assert got.power_criterion == pytest.approx(wide.power_criterion, rel=1e-3, abs=1e-6)
    options = {"kernel": kernel}
    power = F.mmd_power(x, y, **options).item()
    assert power == pytest.approx(F.mmd_power(x.double(), y.double(), **options).item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bandwidths", ["mean", "median"])
@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-20, 1e25, 1e36])
@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
def test_scales_whose_rates_leave_float32(kernel, scale, bandwidths, backend):
    x, y = two_samples(30, 20, 3, 0.2)
    y[0] = x[0]
    options = {"kernel": kernel, "bandwidths": bandwidths}
    expected = F.mmd_test(x.double(), y.double(), 99, seed=0, **options)
    x, y = x * scale, y * scale
    with ops.use_backend(backend if kernel == "rbf" else None):
        got = F.mmd_test(x, y, 99, seed=0, **options)
    assert got.p_value == expected.p_value
    assert got.statistic == pytest.approx(expected.statistic, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(got.bandwidth.double() / scale, expected.bandwidth, rtol=1e-4, atol=0)
    assert F.mmd_power(x, y, **options).item() == pytest.approx(expected.power_criterion, rel=1e-3, abs=1e-5)


def test_rows_at_no_reach_of_the_bandwidth():
    x, y = (s * 1e20 for s in two_samples(12, 9, 3))
    got = F.mmd_test(x, y, 30, bandwidths=torch.tensor([1.0]), estimator="biased", seed=0)
    assert got.statistic == pytest.approx(1 / 12 + 1 / 9)
    assert got.p_value == 1


def test_median_bandwidth_is_that_of_all_pairs():
    x, y = two_samples(30, 20, 6)
    expected = torch.pdist(torch.cat((x, y)).double()).median()
    torch.testing.assert_close(F.mmd_test(x, y, 5).bandwidth.double(), expected[None], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_median_of_many_rows_is_exact_and_does_not_see_their_order(dtype):
    x, y = (s.to(dtype) for s in two_samples(1500, 1200, 5, 1.0))
    z = torch.cat((x, y))[torch.randperm(2700, generator=torch.Generator().manual_seed(0))]
    got = F.mmd_test(x, y, 1).bandwidth
    torch.testing.assert_close(got, F.mmd_test(z[:100], z[100:], 1).bandwidth, rtol=1e-6, atol=0)
    torch.testing.assert_close(got, torch.pdist(z).median()[None], rtol=1e-5, atol=0)


def test_where_most_rows_coincide_the_bandwidth_is_the_root_mean_square():
    x, y = torch.ones(30, 3), torch.ones(20, 3)
    y[:4] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.pdist(torch.cat((x, y))).square().mean().sqrt()[None]
    torch.testing.assert_close(F.mmd_test(x, y, 5).bandwidth, expected)
    got = F.mmd(x, y, bandwidths="median")
    torch.testing.assert_close(got, F.mmd(x, y, bandwidths=expected))


def by_pairs(x, y, bandwidths):
    """Liu et al. 2020, eqs. 2, 3 and 5, entry by entry."""
    k = lambda u, v: sum(torch.exp(-((u - v) ** 2).sum() / (2 * s * s)) for s in bandwidths)
    n = len(x)
    h = torch.stack(
        [
            torch.stack([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(y[i], x[j]) for j in range(n)])
            for i in range(n)
        ]
    )
    mmd = (h.sum() - h.trace()) / (n * (n - 1))
    variance = 4 / n**3 * (h.sum(1) ** 2).sum() - 4 / n**4 * h.sum() ** 2
    return mmd / torch.sqrt(variance + 1e-8)


def test_power_criterion_of_pairs():
    x, y = (s.double() for s in two_samples(12, 12, 3, 0.5))
    expected = by_pairs(x, y, (1.0, 2.0))
    bandwidths = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(F.mmd_power(x, y, bandwidths=bandwidths), expected)
    assert F.mmd_test(x, y, 5, bandwidths=bandwidths).power_criterion == pytest.approx(expected.item())
    single = F.mmd_test(x.float(), y.float(), 5, bandwidths=bandwidths).power_criterion
    assert single == pytest.approx(expected.item(), rel=1e-4)


def test_power_criterion_of_unequal_samples():
    x, y = (s.double() for s in two_samples(12, 9, 3, 0.5))
    bandwidths = torch.tensor([1.5])
    k = lambda u, v: torch.exp(-(torch.cdist(u, v) ** 2) / (2 * 1.5**2))
    of_x = k(x, x).mean(1) - k(x, y).mean(1)
    of_y = k(y, y).mean(1) - k(y, x).mean(1)
    common = 2 * 12 * 9 / 21
    sigma = (4 * common * (of_x.var(correction=0) / 12 + of_y.var(correction=0) / 9) + 1e-8).sqrt()
    expected = statistic_by_its_definition(x, y, (1.5,), "unbiased") / sigma
    torch.testing.assert_close(F.mmd_power(x, y, bandwidths=bandwidths), expected)
    assert F.mmd_test(x, y, 5, bandwidths=bandwidths).power_criterion == pytest.approx(expected.item())


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize("sizes", [(5, 5), (5, 4)])
def test_power_has_derivatives(sizes, kernel, panels, monkeypatch):
    from thawkit.ops.pairwise import panels as module

    x, y = (s.double().requires_grad_() for s in two_samples(*sizes, 2, 0.5))
    bandwidths = torch.tensor([0.8, 2.0], dtype=torch.float64, requires_grad=True)
    inputs = (x, y, bandwidths) if kernel in ("rbf", "laplace", "imq") else (x, y)
    power = lambda x, y, *s: F.mmd_power(x, y, kernel=kernel, **({"bandwidths": s[0]} if s else {}))
    whole = power(*inputs)
    if panels:
        monkeypatch.setattr(module, "_ENTRIES", 2 * sum(sizes))
        torch.testing.assert_close(power(*inputs), whole)
    assert torch.autograd.gradcheck(power, inputs)
    assert torch.autograd.gradgradcheck(power, inputs)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 9)])
def test_power_criterion_of_the_test_is_mmd_power(sizes, kernel):
    x, y = two_samples(*sizes, 3, 0.5)
    got = F.mmd_test(x, y, 5, kernel=kernel).power_criterion
    assert got == pytest.approx(F.mmd_power(x, y, kernel=kernel).item(), rel=1e-4)


def test_power_stores_no_matrix():
    """3000 rows: the matrix of pairs has 72 MB, and autograd would keep several of them."""
    x, y = (s.requires_grad_() for s in two_samples(1500, 1500, 4, 0.5))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        F.mmd_power(x, y)
    assert sum(kept) < 4e6


def test_power_in_half_precision_is_float32():
    x, y = two_samples(20, 20, 4, 0.5)
    half = [s.bfloat16().requires_grad_() for s in (x, y)]
    value = F.mmd_power(*half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.mmd_power(*(s.float() for s in half)))
    value.backward()
    assert half[0].grad.dtype == torch.bfloat16


# ---- level and power


@pytest.mark.parametrize("sizes", [(20, 20), (10, 35)])
def test_p_is_uniform_where_nothing_differs(sizes):
    """By Dvoretzky, Kiefer and Wolfowitz the deviation exceeds 0.0873 once in 1000 seeds."""
    tests, permutations = 500, 99
    p = torch.tensor(
        [F.mmd_test(*two_samples(*sizes, 3, seed=i), permutations, seed=i).p_value for i in range(tests)]
    )
    grid = torch.arange(1, permutations + 2) / (permutations + 1)
    share = (p[:, None] <= grid + 1e-6).double().mean(0)
    bound = math.sqrt(math.log(2 / 0.001) / (2 * tests))
    assert (share - grid).abs().max() < bound


def test_a_stated_shift_is_found():
    """60 and 80 rows of 5 features, each mean 0.5 standard deviations off: found nine times out of ten."""
    found = [F.mmd_test(*two_samples(60, 80, 5, 0.5, seed=i), 199, seed=i).p_value <= 0.05 for i in range(60)]
    assert sum(found) >= 54


@pytest.mark.parametrize("kernel", ["laplace", "imq", "energy", "linear", "poly"])
def test_level_and_power_of_every_kernel(kernel):
    """As above, the bound for 200 tests; the shift is found by all kernels."""
    p = torch.tensor(
        [F.mmd_test(*two_samples(15, 25, 3, seed=i), 49, kernel=kernel, seed=i).p_value for i in range(200)]
    )
    grid = torch.arange(1, 51) / 50
    share = (p[:, None] <= grid + 1e-6).double().mean(0)
    assert (share - grid).abs().max() < math.sqrt(math.log(2 / 0.001) / 400)
    found = [
        F.mmd_test(*two_samples(60, 80, 5, 0.5, seed=i), 99, kernel=kernel, seed=i).p_value <= 0.05
        for i in range(30)
    ]
    assert sum(found) >= 25


def test_equal_means_are_told_apart_by_variance():
    x, y = two_samples(150, 150, 3)
    assert F.mmd_test(x, 1.6 * y, 499, seed=0).p_value <= 0.01


def test_p_of_few_rows_is_that_of_all_deals():
    x, y = two_samples(3, 4, 2, 1.0, seed=4)
    z = torch.cat((x, y)).double()
    values = []
    for chosen in itertools.combinations(range(7), 3):
        rest = [i for i in range(7) if i not in chosen]
        values.append(statistic_by_its_definition(z[list(chosen)], z[rest], (1.0,), "unbiased"))
    exact = sum(bool(value >= values[0] - 1e-12) for value in values) / len(values)
    got = F.mmd_test(x, y, 20_000, bandwidths=torch.tensor([1.0]), seed=0).p_value
    assert got == pytest.approx(exact, abs=4 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_deals_with_equal_statistics_tie_in_spite_of_rounding(estimator):
    """Swapped samples of one size, and rows that are equal, have equal statistics."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 3, (4, 2), generator=generator) / 4
        y = torch.randint(0, 3, (4, 2), generator=generator) / 4 + 0.125
        options = {"bandwidths": torch.tensor([0.31]), "estimator": estimator, "seed": seed}
        single = F.mmd_test(x, y, 200, **options)
        assert single.p_value == F.mmd_test(x.double(), y.double(), 200, **options).p_value


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("sizes", [(8000, 3), (3, 8000), (8000, 60)])
def test_few_rows_against_many(sizes, estimator):
    """Sums over the many must not swallow those over the few, nor count as their rounding."""
    x, y = two_samples(*sizes, 4, 2.0, seed=1)
    options = {"bandwidths": torch.tensor([2.0]), "estimator": estimator, "seed": 0}
    got = F.mmd_test(x, y, 60, **options)
    wide = F.mmd_test(x.double(), y.double(), 60, **options)
    assert got.statistic == pytest.approx(wide.statistic, rel=3e-6)
    torch.testing.assert_close(got.null_sample, wide.null_sample, rtol=1e-5, atol=1e-6)
    assert got.p_value == wide.p_value == 1 / 61


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_identical_samples(estimator):
    x, _ = two_samples(30, 1, 4)
    assert F.mmd_test(x, x.flip(0), 200, estimator=estimator, seed=0).p_value == 1
    ones = torch.ones(5, 2)
    result = F.mmd_test(ones, ones, 20, estimator=estimator)
    assert result.p_value == 1
    assert result.statistic == pytest.approx(0, abs=1e-6)
    assert math.isfinite(result.power_criterion)


def test_p_is_never_0():
    x, y = two_samples(50, 50, 3, 20.0)
    assert F.mmd_test(x, y, 99, seed=0).p_value == 0.01
    assert F.mmd_test(x, y, 1, seed=0).p_value == 0.5


def test_one_row():
    x, y = two_samples(1, 19, 2, 8.0)
    result = F.mmd_test(x, y, 999, estimator="biased", seed=0)
    assert result.p_value == pytest.approx(1 / 20, abs=0.03)
    assert math.isnan(result.power_criterion)


# ---- seeds, chunks, backends


def test_a_seed_gives_the_same_result_again():
    x, y = two_samples(40, 30, 3, 0.2)
    first, again = (F.mmd_test(x, y, 100, seed=7) for _ in range(2))
    assert torch.equal(first.null_sample, again.null_sample)
    assert first[:2] == again[:2]
    assert not torch.equal(first.null_sample, F.mmd_test(x, y, 100, seed=8).null_sample)
    drawn = [F.mmd_test(x, y, 100, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(drawn[0].null_sample, drawn[1].null_sample)
    torch.manual_seed(5)
    by_torch = F.mmd_test(x, y, 100)
    torch.manual_seed(5)
    assert torch.equal(F.mmd_test(x, y, 100).null_sample, by_torch.null_sample)
    assert F.mmd_test(x, y, 10, seed=-1).p_value > 0


def test_permutations_may_come_in_parts(monkeypatch):
    from thawkit.losses.functional import two_sample

    x, y = two_samples(40, 30, 3, 0.2)
    whole = F.mmd_test(x, y, 300, seed=7)
    monkeypatch.setattr(two_sample, "_BYTES", 70 * 70)
    parts = F.mmd_test(x, y, 300, seed=7)
    torch.testing.assert_close(parts.null_sample, whole.null_sample, rtol=1e-6, atol=1e-9)
    assert parts.p_value == whole.p_value


def test_backends_agree():
    x, y = two_samples(40, 30, 3, 0.2)
    expected = F.mmd_test(x, y, 100, seed=7)
    with ops.use_backend("reference"):
        got = F.mmd_test(x, y, 100, seed=7)
    torch.testing.assert_close(got.null_sample, expected.null_sample, rtol=1e-4, atol=5e-7)
    assert got.p_value == expected.p_value


def test_there_is_no_gradient():
    x, y = (s.requires_grad_() for s in two_samples(10, 10, 3))
    assert not F.mmd_test(x, y, 10).null_sample.requires_grad


def test_half_precision_is_lifted():
    x, y = (s.bfloat16() for s in two_samples(40, 30, 3, 0.2))
    got = F.mmd_test(x, y, 100, seed=7)
    expected = F.mmd_test(x.float(), y.float(), 100, seed=7)
    assert got[:2] == expected[:2]


def test_surroundings_change_nothing():
    x, y = two_samples(20, 30, 3, 0.2)
    expected = F.mmd_test(x, y, 50, seed=7)
    with torch.device("meta"), torch.autocast("cpu"):
        got = F.mmd_test(x, y, 50, seed=7)
    torch.set_default_dtype(torch.float64)
    try:
        again = F.mmd_test(x, y, 50, seed=7)
    finally:
        torch.set_default_dtype(torch.float32)
    for other in (got, again):
        assert torch.equal(other.null_sample, expected.null_sample)
        assert other[:2] == expected[:2]


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: F.mmd_test(X[0], X), "x must have shape"),
        (lambda: F.mmd_test(X, X[:, :1]), "number of features"),
        (lambda: F.mmd_test(X, X.double()), "same dtype"),
        (lambda: F.mmd_test(X, X[:1]), "y must have at least 2 rows, got 1"),
        (lambda: F.mmd_test(X[:0], X, estimator="biased"), "x must have at least 1 rows, got 0"),
        (lambda: F.mmd_test(X, X, 0), "permutations must be an integer of at least 1, got 0"),
        (lambda: F.mmd_test(X, X, 1.5), "permutations must be an integer"),
        (lambda: F.mmd_test(X, X, kernel="tanh"), "kernel must be one of"),
        (lambda: F.mmd_test(X, X, estimator="linear"), "estimator must be one of"),
        (lambda: F.mmd_test(X, X, kernel="energy", bandwidths="mean"), "bandwidths go with the kernels"),
        (lambda: F.mmd_test(X, X, kernel="poly", degree=0), "degree must be an integer of at least 1"),
        (lambda: F.mmd_test(X, X, bandwidths=torch.tensor([0.0])), "bandwidths must be positive"),
        (lambda: F.mmd_test(X, X, bandwidths="wide"), "bandwidths must be"),
        (lambda: F.mmd_test(X, X, seed="a"), "seed must be an integer"),
        (lambda: F.mmd_test(X, X / 0), "y must be finite, but 3 of its rows are not"),
        (lambda: F.mmd_power(X, X[:1]), "y must have at least 2 rows, got 1"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()


def test_it_is_found_where_it_is_documented():
    assert losses.mmd_test is F.mmd_test
    assert losses.MMDTestResult is F.MMDTestResult
