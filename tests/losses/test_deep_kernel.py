"""Deep kernels: their values, how they learn to tell samples apart, and that the test stays exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import DeepKernel, DeepKernelTest
from thawkit.losses import functional as F


def network(inputs, outputs=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Softplus(), nn.Linear(16, outputs))


def turned(count, sign, seed):
    """Pairs of numbers that agree or disagree in sign, among noise: no feature's distribution differs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    x[:, 1] = sign * x[:, 0] * 0.9 + x[:, 1] * 0.4
    return x


def by_its_definition(kernel, x, y):
    """Liu et al. 2020, eq. 1."""
    gaussian = lambda u, v, s: torch.exp(-(torch.cdist(u, v) ** 2) / (2 * s**2))
    epsilon = kernel.logit_epsilon.sigmoid()
    of_features = gaussian(kernel.features(x), kernel.features(y), kernel.log_feature_bandwidth.exp())
    return ((1 - epsilon) * of_features + epsilon) * gaussian(x, y, kernel.log_input_bandwidth.exp())


def test_values_by_their_definition():
    kernel = DeepKernel(network(6), 0.2, 1.5, 3.0)
    x, y = turned(9, 1, 0), turned(7, -1, 1)
    torch.testing.assert_close(kernel(x, y), by_its_definition(kernel, x, y), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kernel(x, x).diagonal(), torch.ones(9), rtol=0, atol=1e-5)


def test_bandwidths_start_at_the_median_distance():
    kernel = DeepKernel(network(6))
    x, y = turned(30, 1, 0), turned(20, -1, 1)
    kernel(x, y)
    z = torch.cat((x, y))
    for rows, log in (
        (z, kernel.log_input_bandwidth),
        (kernel.features(z), kernel.log_feature_bandwidth),
    ):
        torch.testing.assert_close(log.exp(), torch.pdist(rows).median(), rtol=1e-3, atol=0)
    before = kernel.log_input_bandwidth.item()
    kernel(3 * x, 3 * y)
    assert kernel.log_input_bandwidth.item() == before


def test_the_test_of_a_deep_kernel_by_its_matrix():
    kernel = DeepKernel(network(6), 0.2, 1.5, 3.0)
    x, y = turned(30, 1, 0), turned(20, -1, 1)
    got = F.mmd_test(x, y, 40, kernel=kernel, seed=3)
    z = torch.cat((x, y))
    matrix = by_its_definition(kernel, z, z).detach().double().fill_diagonal_(0)
    w = ops.pairwise.subsets(50, 30, 41, seed=3)[:, 1:].double()
    xx, xy, yy = (torch.einsum("ip,ij,jp->p", a, matrix, b) for a, b in ((w, w), (w, 1 - w), (1 - w, 1 - w)))
    expected = xx / (30 * 29) + yy / (20 * 19) - 2 * xy / (30 * 20)
    torch.testing.assert_close(got.null_sample, expected, rtol=1e-4, atol=1e-6)
    assert got.bandwidth.numel() == 0


def test_power_is_that_of_the_matrix_and_has_gradients():
    kernel = DeepKernel(network(6), 0.2, 1.5, 3.0)
    x, y = turned(20, 1, 0), turned(20, -1, 1)
    power = F.mmd_power(x, y, kernel=kernel)
    k = lambda u, v: by_its_definition(kernel, u, v)
    h = k(x, x) + k(y, y) - k(x, y) - k(y, x)
    variance = 4 / 20**3 * (h.sum(1) ** 2).sum() - 4 / 20**4 * h.sum() ** 2
    expected = (h.sum() - h.trace()) / (20 * 19) / torch.sqrt(variance + 1e-8)
    torch.testing.assert_close(power, expected, rtol=1e-3, atol=1e-5)
    gradients = torch.autograd.grad(power, tuple(kernel.parameters()), retain_graph=True)
    truth = torch.autograd.grad(expected, tuple(kernel.parameters()))
    for a, b in zip(gradients, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)


def test_inputs_of_any_shape():
    images = torch.randn(12, 3, 4, 4), torch.randn(9, 3, 4, 4)
    kernel = DeepKernel(nn.Conv2d(3, 5, 3))
    assert kernel(*images).shape == (12, 9)
    assert 0 < F.mmd_test(*images, 20, kernel=kernel).p_value <= 1


def blobs(count, correlation, seed):
    """Nine clusters ten standard deviations apart, round ones or stretched ones (Liu et al. 2020, fig. 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    x[:, 1] = correlation * x[:, 0] + (1 - correlation**2) ** 0.5 * x[:, 1]
    return x + 10 * torch.randint(0, 3, (count, 2), generator=generator)


def test_training_finds_what_a_fixed_kernel_does_not():
    x, y = blobs(600, 0.0, 0), blobs(600, 0.9, 1)
    assert F.mmd_test(x, y, 200, seed=0).p_value > 0.1
    test = DeepKernelTest(DeepKernel(network(2)), steps=200, lr=0.03, batch_size=200, permutations=200)
    assert test(x, y).p_value < 0.01
    assert sum(test.history[-20:]) > 2 * abs(sum(test.history[:20]))


def test_a_trained_kernel_raises_no_false_alarms():
    """Of 40 tests at 0.1 more than 9 would be false once in 100 times."""
    alarms = 0
    for seed in range(40):
        x, y = turned(60, 1, 2 * seed), turned(60, 1, 2 * seed + 1)
        test = DeepKernelTest(DeepKernel(network(6, seed=seed)), steps=15, permutations=99, seed=seed)
        alarms += test(x, y).p_value <= 0.1
    assert alarms <= 9


def test_a_seed_gives_the_same_result_again():
    x, y = turned(60, 1, 0), turned(40, -1, 1)
    results = [
        DeepKernelTest(DeepKernel(network(6)), steps=5, permutations=50, seed=4)(x, y) for _ in range(2)
    ]
    assert torch.equal(results[0].null_sample, results[1].null_sample)


X = torch.zeros(8, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DeepKernel(nn.Identity(), epsilon=1.0), "epsilon must be between 0 and 1, got 1.0"),
        (lambda: DeepKernel(nn.Identity(), input_bandwidth=0.0), "input_bandwidth must be positive"),
        (lambda: DeepKernelTest(DeepKernel(nn.Identity()), steps=-1), "steps must be an integer"),
        (lambda: DeepKernelTest(DeepKernel(nn.Identity()), train_share=1.0), "train_share must be between"),
        (lambda: DeepKernelTest(DeepKernel(nn.Identity()))(X, X[:3]), "y must have at least 2 rows to learn"),
        (lambda: F.mmd_test(X, X[:, :1], kernel=DeepKernel(nn.Identity())), "x and y must have shapes"),
        (lambda: F.mmd_test(X[:, 0], X[:, 0], kernel=DeepKernel(nn.Identity())), "x and y must have shapes"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
