"""MMD against its float64 reference: values, gradients, awkward sizes, special values."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.conftest import against_reference
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.pairwise import reference


def two_samples(n, m, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, features, generator=generator),
        torch.randn(m, features, generator=generator) * 1.3 + 0.4,
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("bandwidths", ["mean", (3.0, 3), torch.tensor([2.0, 5.0]), (2.0, 1)])
@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, 11, 4), (36, 36, 20), (101, 67, 33), (400, 250, 12)])
def test_mmd_equals_float64(sizes, bandwidths, estimator):
    x, y = two_samples(*sizes)
    errors = against_reference(lambda x, y: F.mmd(x, y, bandwidths=bandwidths, estimator=estimator), x, y)
    assert errors[0] < 3e-5
    assert max(errors[1:]) < 1e-5


def test_mmd_by_its_definition():
    x, y = (s.double() for s in two_samples(7, 5, 3))
    k = lambda u, v: sum(torch.exp(-(torch.cdist(u, v) ** 2) / (2 * s * s)) for s in (1.0, 4.0))
    expected = k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()
    got = F.mmd(x.float(), y.float(), bandwidths=torch.tensor([1.0, 4.0]))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mmd_of_a_sample_with_itself():
    x, _ = two_samples(50, 2, 8)
    assert F.mmd(x, x.clone()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bandwidths", ["mean", torch.tensor([2.0, 5.0])])
def test_mmd_far_from_the_origin_keeps_its_digits(bandwidths):
    x, y = (sample + 1e4 for sample in two_samples(60, 50, 8))
    assert max(against_reference(lambda x, y: F.mmd(x, y, bandwidths=bandwidths), x, y)) < 1e-5


@pytest.mark.parametrize("offset", [1e4, 1e6 / 3])
def test_mmd_of_many_rows_far_from_the_origin(offset):
    x, y = two_samples(3000, 3000, 4)
    x[:, 0] = y[:, 0] = offset  # a constant feature tells nothing apart
    near = [sample[:, 1:].clone().requires_grad_() for sample in (x, y)]
    far = [sample.requires_grad_() for sample in (x, y)]
    expected = torch.autograd.grad(F.mmd(*near), near)
    got = torch.autograd.grad(F.mmd(*far), far)
    for a, b in zip(got, expected, strict=True):
        assert (a[:, 1:] - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("bandwidth", [1e30, 1e-18])
def test_mmd_bandwidths_beyond_float32_tell_nothing_apart_or_everything(bandwidth):
    x, y = (sample.requires_grad_() for sample in two_samples(20, 30, 4))
    value = F.mmd(x, y, bandwidths=torch.tensor([bandwidth]))
    gradients = torch.autograd.grad(value, (x, y))
    assert value.item() == pytest.approx(0 if bandwidth > 1 else 1 / 20 + 1 / 30, abs=1e-6)
    assert max(g.abs().max() for g in gradients) < 1e-30


@pytest.mark.parametrize("bandwidths", ["mean", (4.0, 50)])
def test_mmd_coinciding_points_are_finite(bandwidths):
    x = torch.ones(6, 3, requires_grad=True)
    value = F.mmd(x, torch.ones(4, 3), bandwidths=bandwidths)
    value.backward()
    assert value.item() == pytest.approx(0, abs=3e-5)  # up to 50 kernels of 1 cancel
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_mmd_special_values_spread_as_in_torch(value):
    x, y = two_samples(20, 30, 4)
    x[3, 1] = value
    assert F.mmd(x, y, bandwidths=torch.tensor([2.0])).isnan()


def test_mean_squared_distance_is_that_of_all_pairs():
    x, y = (s.double() for s in two_samples(9, 6, 5))
    z = torch.cat((x, y))
    expected = torch.cdist(z, z).square().sum() / (15 * 14)
    torch.testing.assert_close(reference.mean_squared_distance(x, y), expected)


def test_mmd_gradcheck_and_bandwidth_gradient():
    x, y = (s.double().requires_grad_() for s in two_samples(4, 6, 3))
    sigma = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    function = lambda x, y, s: F.mmd(x, y, bandwidths=s, estimator="unbiased")
    assert torch.autograd.gradcheck(function, (x, y, sigma))
    assert torch.autograd.gradgradcheck(function, (x, y, sigma))
    learned = torch.tensor([1.0, 3.0], requires_grad=True)
    F.mmd(x.detach().float(), y.detach().float(), bandwidths=learned).backward()
    assert learned.grad.abs().min() > 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_mmd_compiles_without_graph_breaks(backend):
    step = lambda x, y: F.mmd(x * 2, y) + 1
    inputs = [x.requires_grad_() for x in two_samples(20, 30, 8)]
    expected = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend=backend)(*inputs), inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("x", "y", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(3, 2), {}, "x must have shape"),
        (torch.zeros(3, 2), torch.zeros(3, 4), {}, "number of features"),
        (torch.zeros(1, 2), torch.zeros(3, 2), {"estimator": "unbiased"}, "x must have at least 2 rows"),
        (torch.zeros(3, 2), torch.zeros(0, 2), {}, "y must have at least 1 rows"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"kernel": "tanh"}, "kernel must be one of"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidths": (1.0, 3)}, "multiplier > 1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidths": ("a", 3)}, "multiplier > 1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidths": "wide"}, "bandwidths must be 'mean'"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidths": [1.0]}, "bandwidths must be 'mean'"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidths": torch.tensor([0.0])}, "positive and finite"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"estimator": "best"}, "estimator must be one of"),
    ],
)
def test_mmd_bad_input(x, y, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.mmd(x, y, **options)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bandwidths", [torch.tensor([0.5, 2.0]), "mean"])
def test_a_row_far_away_leaves_the_distances_of_others_alone(bandwidths, backend):
    x, y = two_samples(60, 70, 8)
    x[0] *= 1e5
    truth = F.mmd(x.double(), y.double(), bandwidths=bandwidths)
    with ops.use_backend(backend):
        got = F.mmd(x, y, bandwidths=bandwidths)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)
