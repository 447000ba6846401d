"""Sliced Wasserstein distance against scipy's in one dimension: sizes, weights, exponents, bad input."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import wasserstein_distance

from tests.losses import oracle
from thawkit import losses
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

SIZES = [(1, 1), (1, 5), (7, 7), (6, 4), (13, 31), (100, 64)]


def two_samples(n, m, features=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, torch.randn(m, features, generator=generator) * 1.3 + 0.4


def directions(features, count=6):
    return torch.randn(features, count, generator=torch.Generator().manual_seed(5))


def by_quantiles(x, y, p, x_weight, y_weight):
    """W_p^p of numbers, which a plan moves in their order: the north-west corner rule, exactly."""
    x, x_order = x.sort()
    y, y_order = y.sort()
    x_left = (x_weight / x_weight.sum())[x_order].tolist()
    y_left = (y_weight / y_weight.sum())[y_order].tolist()
    i = j = 0
    total = 0.0
    while i < len(x) and j < len(y):
        moved = min(x_left[i], y_left[j])
        total = total + moved * (x[i] - y[j]).abs() ** p
        if x_left[i] <= y_left[j]:
            y_left[j] -= moved
            i += 1
        else:
            x_left[i] -= moved
            j += 1
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_one_dimension_is_scipys(size, weighted):
    x, y = two_samples(*size)
    weights = [None, None]
    if weighted:
        weights = [torch.rand(k, generator=torch.Generator().manual_seed(k)) + 0.01 for k in size]
    expected = wasserstein_distance(x[:, 0].double(), y[:, 0].double(), *weights)
    got = F.sliced_wasserstein(
        x.double(), y.double(), projections=3, p=1, x_weight=weights[0], y_weight=weights[1]
    )
    assert got.item() == pytest.approx(expected, rel=1e-6)
    rounded = F.sliced_wasserstein(x, y, p=1, x_weight=weights[0], y_weight=weights[1])
    assert rounded.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_mean_over_directions(size, weighted, p):
    lines = directions(4)
    samples = two_samples(*size, 4)
    weights = [torch.ones(k) for k in size]
    options = {}
    if weighted:
        weights = [torch.rand(k, generator=torch.Generator().manual_seed(k)) for k in size]
        options = {"x_weight": weights[0], "y_weight": weights[1]}

    def definition(x, y):
        unit = torch.nn.functional.normalize(lines.double(), dim=0)
        wide = [w.double() for w in weights]
        return torch.stack([by_quantiles(x @ u, y @ u, p, *wide) for u in unit.t()]).mean()

    oracle.assert_is(
        lambda x, y: F.sliced_wasserstein(x, y, projections=lines.to(x.dtype), p=p, root=False, **options),
        definition,
        *samples,
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_root_is_a_distance():
    x, y = two_samples(20, 30, 3)
    lines = directions(3)
    for p in (1, 2, 3):
        power = F.sliced_wasserstein(x, y, projections=lines, p=p, root=False)
        distance = F.sliced_wasserstein(x, y, projections=lines, p=p)
        torch.testing.assert_close(distance, power ** (1 / p))
    torch.testing.assert_close(
        F.sliced_wasserstein(x, x + 2, projections=torch.eye(3)), torch.tensor(2.0), rtol=1e-5, atol=0
    )


def test_a_sample_is_at_no_distance_from_itself():
    x, _ = two_samples(20, 1, 3)
    x.requires_grad_()
    value = F.sliced_wasserstein(x, x.detach().flip(0))
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_copies_weigh_as_weights_do():
    x, y = (s.double() for s in two_samples(5, 7, 3))
    lines = directions(3).double()
    times = torch.tensor([1, 2, 3, 1, 4])
    copies = F.sliced_wasserstein(x.repeat_interleave(times, 0), y, projections=lines)
    weights = F.sliced_wasserstein(x, y, projections=lines, x_weight=times.double())
    torch.testing.assert_close(copies, weights)
    torch.testing.assert_close(
        weights, F.sliced_wasserstein(y, x, projections=lines, y_weight=times.double() / 7)
    )


def test_rows_of_weight_0_are_absent():
    x, y = (s.double() for s in two_samples(6, 7, 3))
    lines = directions(3).double()
    weight = torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64)
    got = F.sliced_wasserstein(x, y, projections=lines, x_weight=weight)
    torch.testing.assert_close(got, F.sliced_wasserstein(x[weight > 0], y, projections=lines))


@pytest.mark.parametrize("sizes", [(5, 5), (5, 3)])
def test_derivatives(sizes):
    x, y = two_samples(*sizes, 3)
    lines = directions(3).double()
    oracle.assert_differentiable_twice(
        lambda x, y: F.sliced_wasserstein(x, y, projections=lines, root=False), x, y
    )
    weight = torch.rand(sizes[0], generator=torch.Generator().manual_seed(1)) + 0.1
    oracle.assert_differentiable_twice(
        lambda x, y, w: F.sliced_wasserstein(x, y, projections=lines, x_weight=w, p=3), x, y, weight
    )


@pytest.mark.parametrize("sizes", [(30, 30), (30, 20)])
def test_what_all_losses_keep_to(sizes):
    samples = two_samples(*sizes, 7)
    lines = directions(7)
    loss = lambda x, y: F.sliced_wasserstein(x, y, projections=lines)
    oracle.assert_layout_does_not_matter(loss, *samples)
    oracle.assert_half_precision_is_lifted(loss, *samples)
    oracle.assert_autocast_changes_nothing(loss, *samples)
    oracle.assert_compiles(loss, *samples)


def test_random_directions_have_a_generator():
    x, y = two_samples(20, 30, 5)
    draw = lambda seed: F.sliced_wasserstein(
        x, y, projections=8, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(3)
    expected = F.sliced_wasserstein(x, y, projections=8)
    torch.manual_seed(3)
    assert torch.equal(losses.SlicedWassersteinLoss(8)(x, y), expected)


@pytest.mark.parametrize("length", [1e-30, 1e-13, 1e30])
def test_directions_may_have_any_length(length):
    x, y = two_samples(20, 30, 5)
    lines = directions(5)
    got = F.sliced_wasserstein(x, y, projections=lines * length)
    torch.testing.assert_close(got, F.sliced_wasserstein(x, y, projections=lines))


def test_many_directions_come_to_the_expectation():
    """Of two points a distance r apart, W_2^2 on a random line is r^2 / D on average."""
    x, y = torch.zeros(1, 10), torch.ones(1, 10)
    value = F.sliced_wasserstein(
        x, y, projections=20_000, root=False, generator=torch.Generator().manual_seed(0)
    )
    assert value.item() == pytest.approx(1.0, rel=0.05)


def test_the_module_keeps_directions():
    lines = directions(5)
    loss = losses.SlicedWassersteinLoss(lines, p=1, root=False)
    x, y = two_samples(9, 12, 5)
    weight = torch.rand(9)
    expected = F.sliced_wasserstein(x, y, projections=lines, p=1, root=False, x_weight=weight)
    torch.testing.assert_close(loss(x, y, weight), expected)
    assert loss.double().directions.dtype == torch.float64
    assert "projections=16" in repr(losses.SlicedWassersteinLoss(16))


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: F.sliced_wasserstein(X[0], X), "x must have shape"),
        (lambda: F.sliced_wasserstein(X, X[:, :1]), "number of features"),
        (lambda: F.sliced_wasserstein(X, X[:0]), "y must have at least 1 row, got 0"),
        (lambda: F.sliced_wasserstein(X, X, p=0.5), "p must be at least 1, got 0.5"),
        (lambda: F.sliced_wasserstein(X, X, projections=0), "projections must be an integer of at least 1"),
        (lambda: F.sliced_wasserstein(X, X, projections=torch.zeros(3, 4)), r"shape \(2, directions\)"),
        (
            lambda: F.sliced_wasserstein(X, X, projections=torch.tensor([[1.0, 0.0], [0.0, 0.0]])),
            "projections must have no column of zeros, which is no direction, got 1 of 2",
        ),
        (lambda: F.sliced_wasserstein(X, X, root=1), "root must be True or False"),
        (lambda: F.sliced_wasserstein(X, X, x_weight=torch.ones(2)), r"x_weight must have shape \(3,\)"),
        (lambda: F.sliced_wasserstein(X, X, y_weight=-torch.ones(3)), "y_weight must hold finite numbers"),
        (lambda: F.sliced_wasserstein(X, X, y_weight=torch.zeros(3)), "not all of them 0"),
        (lambda: losses.SlicedWassersteinLoss(p=0), "p must be at least 1"),
        (lambda: losses.SlicedWassersteinLoss(0), "projections must be an integer"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 7.0])
@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_any_scale(scale, p, weighted):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 5, generator=generator) * scale for rows in (20, 13))
    options = {"projections": torch.randn(5, 8, generator=generator), "p": p}
    if weighted:
        options["x_weight"] = torch.rand(20, generator=generator) + 0.1
    inputs = x.requires_grad_(), y.requires_grad_()
    wide = [z.detach().double().requires_grad_() for z in inputs]
    got, expected = (F.sliced_wasserstein(*z, **options) for z in (inputs, wide))
    torch.testing.assert_close(got.double() / scale, expected / scale, rtol=1e-5, atol=0)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-6)
