"""The stand-ins for Transfer-Learning-Library, which is in no package index: its formulas, entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.tllib import (
    CorrelationAlignmentLoss,
    GaussianKernel,
    JointMultipleKernelMaximumMeanDiscrepancy,
    MultipleKernelMaximumMeanDiscrepancy,
)

SIZES = [(2, 3), (5, 8), (36, 20)]
ALPHAS = (0.125, 0.25, 0.5, 1.0, 2.0)


def batch(rows, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_s = torch.randn(rows, features, generator=generator)
    return z_s, torch.randn(rows, features, generator=generator) * 1.3 + 0.4


def gaussian(z, alpha=None, sigma=None):
    """exp(-d^2 / (2 s^2)), s^2 being alpha times the mean of all N^2 squared distances of the batch."""
    d2 = ((z[None] - z[:, None]) ** 2).sum(2)
    square = sigma**2 if sigma is not None else alpha * d2.detach().mean()
    return torch.exp(-d2 / (2 * square))


def index_matrix(n, linear):
    """How much each kernel value counts: Long et al. 2015, eq. 1 without its diagonal, or its eq. 6."""
    index = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    for i in range(n):
        j = (i + 1) % n
        if linear:
            for a, b, sign in ((i, j, 1), (n + i, n + j, 1), (i, n + j, -1), (j, n + i, -1)):
                index[a, b] = sign / n
            continue
        for j in range(n):
            index[i, n + j] = index[n + i, j] = -1 / n**2
            if i != j:
                index[i, j] = index[n + i, n + j] = 1 / (n * (n - 1))
    return index


def definition(matrix, linear):
    n = len(matrix) // 2
    return (matrix * index_matrix(n, linear)).sum() + 2 / (n - 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"sigma": 1.5, "track_running_stats": False}])
def test_kernel(size, options):
    z, _ = batch(*size)
    kernel = GaussianKernel(**options)
    peers.assert_same(
        kernel,
        lambda x: gaussian(x, options.get("alpha"), options.get("sigma")),
        z,
    )
    expected = 2.25 if "sigma" in options else 0.5 * torch.cdist(z, z).square().mean().item()
    assert float(kernel.sigma_square) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("alphas", [ALPHAS, (1.0,), (0.3, 2.0)])
@pytest.mark.parametrize("size", SIZES)
def test_mk_mmd(size, alphas, linear):
    loss = MultipleKernelMaximumMeanDiscrepancy([GaussianKernel(alpha=a) for a in alphas], linear=linear)
    peers.assert_same(
        loss,
        lambda s, t: definition(sum(gaussian(torch.cat((s, t)), a) for a in alphas), linear),
        *batch(*size),
        atol=2e-5,
    )


@pytest.mark.parametrize("linear", [False, True])
def test_mk_mmd_of_any_kernel(linear):
    class Inverse(nn.Module):
        def forward(self, x):
            return 1 / (1 + ((x[None] - x[:, None]) ** 2).sum(2))

    kernels = [GaussianKernel(sigma=2.0, track_running_stats=False), Inverse()]
    loss = MultipleKernelMaximumMeanDiscrepancy(kernels, linear)

    def expected(s, t):
        both = torch.cat((s, t))
        return definition(gaussian(both, sigma=2.0) + Inverse()(both), linear)

    peers.assert_same(loss, expected, *batch(7, 5))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("rows", [2, 9])
def test_joint_mmd(rows, linear):
    kernels = (
        tuple(GaussianKernel(alpha=a) for a in ALPHAS),
        (GaussianKernel(sigma=0.92, track_running_stats=False),),
    )
    loss = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear=linear)

    def expected(s1, s2, t1, t2):
        first, second = torch.cat((s1, t1)), torch.cat((s2, t2))
        return definition(sum(gaussian(first, a) for a in ALPHAS) * gaussian(second, sigma=0.92), linear)

    (s1, t1), (s2, t2) = batch(rows, 6), batch(rows, 3, 1)
    peers.assert_same(
        lambda s1, s2, t1, t2: loss((s1, s2), (t1, t2)), expected, s1, s2 / 3, t1, t2 / 3, atol=2e-5
    )


def test_quadratic_joint_mmd_of_different_sizes_stores_no_matrix():
    kernels = [[GaussianKernel(alpha=a) for a in ALPHAS], [GaussianKernel(alpha=2.0)]]
    loss = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear=False)
    layers = batch(1000, 6), batch(1000, 3, 1)
    source = [s[:900].requires_grad_() for s, _ in layers]
    target = [t.requires_grad_() for _, t in layers]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        got = loss(source, target)
    assert sum(kept) < 1e6  # of the 14 MB of the matrix
    both = [torch.cat(pair).double() for pair in zip(source, target, strict=True)]
    k = sum(gaussian(both[0], a) for a in ALPHAS) * gaussian(both[1], 2.0)
    off = lambda block: (block.sum() - block.trace()) / (len(block) * (len(block) - 1))
    expected = off(k[:900, :900]) + off(k[900:, 900:]) - 2 * k[:900, 900:].mean() + 1 / 899 + 1 / 999
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_any_scale(scale):
    s, t = (z * scale for z in batch(20, 200))
    kernels = [GaussianKernel(alpha=a) for a in ALPHAS]
    loss = MultipleKernelMaximumMeanDiscrepancy(kernels)
    torch.testing.assert_close(loss(s, t).double(), loss(s.double(), t.double()), rtol=1e-5, atol=1e-6)
    loss = JointMultipleKernelMaximumMeanDiscrepancy([kernels, kernels[:1]], linear=False)
    expected = loss([s.double()] * 2, [t.double()] * 2)
    torch.testing.assert_close(loss([s] * 2, [t] * 2).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_thetas_come_first(linear):
    torch.manual_seed(0)
    theta = nn.Linear(6, 6)
    kernels = [[GaussianKernel(alpha=1.0)]]
    (s, t) = batch(8, 6)
    got = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear, [theta])([s], [t])
    plain = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear)([theta(s)], [theta(t)])
    torch.testing.assert_close(got, plain)
    got.backward()
    assert theta.weight.grad is not None


def test_joint_mmd_is_linear_by_default():
    kernels, (s, t) = [[GaussianKernel()]], batch(8, 6)
    loss = JointMultipleKernelMaximumMeanDiscrepancy
    assert torch.equal(loss(kernels)([s], [t]), loss(kernels, True)([s], [t]))
    mk = MultipleKernelMaximumMeanDiscrepancy([GaussianKernel()])
    torch.testing.assert_close(loss(kernels, False)([s], [t]), mk(s, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_coral(size):
    def expected(s, t):
        of_s, of_t = (x - x.mean(0) for x in (s, t))
        difference = of_s.t() @ of_s / (len(s) - 1) - of_t.t() @ of_t / (len(t) - 1)
        return ((s.mean(0) - t.mean(0)) ** 2).mean() + (difference**2).mean()

    peers.assert_same(CorrelationAlignmentLoss(), expected, *batch(*size))


def test_samples_of_different_sizes():
    """As many terms of the diagonal as there are, so that equal sizes give 2 / (N - 1)."""
    kernel = GaussianKernel(sigma=1.0, track_running_stats=False)
    s, t = batch(8, 3)
    got = MultipleKernelMaximumMeanDiscrepancy([kernel])(s, t[:5])
    both = torch.cat((s, t[:5]))
    k = gaussian(both, sigma=1.0)
    off = lambda block: (block.sum() - block.trace()) / (len(block) * (len(block) - 1))
    expected = off(k[:8, :8]) + off(k[8:, 8:]) - 2 * k[:8, 8:].mean() + 1 / 7 + 1 / 4
    torch.testing.assert_close(got, expected)


def test_coinciding_points_are_finite():
    ones = torch.ones(4, 3, requires_grad=True)
    for linear in (False, True):
        loss = MultipleKernelMaximumMeanDiscrepancy([GaussianKernel(alpha=a) for a in ALPHAS], linear)
        value = loss(ones, torch.ones(4, 3))
        value.backward()
        assert value.item() == pytest.approx(2 / 3, abs=1e-4)
        assert torch.isfinite(ones.grad).all()


def test_half_precision_gives_float32():
    s, t = (x.bfloat16().requires_grad_() for x in batch(8, 6))
    for linear in (False, True):
        value = MultipleKernelMaximumMeanDiscrepancy([GaussianKernel()], linear)(s, t)
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, s)[0].dtype == torch.bfloat16


X = torch.zeros(3, 2)
MK = MultipleKernelMaximumMeanDiscrepancy
JOINT = JointMultipleKernelMaximumMeanDiscrepancy


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: GaussianKernel(track_running_stats=False), "sigma must be given"),
        (lambda: GaussianKernel(sigma=-1.0), "sigma must be positive"),
        (lambda: GaussianKernel(alpha=0.0), "alpha must be positive"),
        (lambda: GaussianKernel()(X[0]), "X must have shape"),
        (lambda: MK([]), "kernels must hold at least one"),
        (lambda: MK([GaussianKernel()])(X[:1], X[:1]), "z_s must have at least 2 rows, got 1"),
        (lambda: MK([GaussianKernel()], True)(X, X[:2]), "as many rows where linear=True, got 3 and 2"),
        (lambda: MK([GaussianKernel()])(X, X[:, :1]), "number of features"),
        (lambda: JOINT([[]]), "kernels must hold at least one"),
        (lambda: JOINT([[GaussianKernel()]])([X, X], [X]), "one entry for each of 1 layers"),
        (lambda: JOINT([[GaussianKernel()]])([X], [X[:2]]), r"z_s\[0\] and z_t\[0\] must have as many"),
        (lambda: JOINT([[GaussianKernel()]] * 2)([X, X[:2]], [X, X[:2]]), "same rows in every layer"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
