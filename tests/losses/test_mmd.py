"""Estimators of the MMD that do without all pairs, and the modules."""

from __future__ import annotations

import pytest
import torch

from thawkit import losses, ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

KERNELS = ["rbf", "laplace", "imq", "energy", "linear", "poly"]


def two_samples(n, m, features, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    y = torch.randn(m, features, generator=generator, dtype=torch.float64) * 1.3 + 0.4
    return x.to(dtype), y.to(dtype)


def bandwidth_of(kernel):
    return {"bandwidths": torch.tensor([1.5, 4.0])} if kernel in ("rbf", "laplace", "imq") else {}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_linear_estimate_is_the_mean_of_h_over_disjoint_pairs(kernel):
    x, y = two_samples(11, 9, 3)
    # of two rows alone the MMD is -2 k(u, v) and what cancels in h
    k = lambda u, v: -F.mmd(u, v, kernel=kernel, **bandwidth_of(kernel)) / 2
    h = [
        k(x[i : i + 1], x[i + 4 : i + 5])
        + k(y[i : i + 1], y[i + 4 : i + 5])
        - k(x[i : i + 1], y[i + 4 : i + 5])
        - k(x[i + 4 : i + 5], y[i : i + 1])
        for i in range(4)
    ]
    got = F.mmd(x, y, kernel=kernel, estimator="linear", **bandwidth_of(kernel))
    torch.testing.assert_close(got, sum(h) / 4, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_block_estimate_is_the_mean_of_unbiased_ones(kernel):
    x, y = two_samples(14, 17, 3)
    blocks = [
        F.mmd(x[i : i + 4], y[i : i + 4], kernel=kernel, estimator="unbiased", **bandwidth_of(kernel))
        for i in range(0, 12, 4)
    ]
    got = F.mmd(x, y, kernel=kernel, estimator="block", block_size=4, **bandwidth_of(kernel))
    torch.testing.assert_close(got, sum(blocks) / 3, rtol=1e-9, atol=1e-12)
    whole = F.mmd(x[:14], y[:14], kernel=kernel, estimator="block", block_size=14, **bandwidth_of(kernel))
    unbiased = F.mmd(x[:14], y[:14], kernel=kernel, estimator="unbiased", **bandwidth_of(kernel))
    torch.testing.assert_close(whole, unbiased, rtol=1e-9, atol=1e-12)


def test_blocks_are_of_the_root_of_the_sample():
    x, y = two_samples(30, 40, 3)
    got = F.mmd(x, y, estimator="block")
    assert torch.equal(got, F.mmd(x, y, estimator="block", block_size=5))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", ["rbf", "laplace"])
def test_random_features_come_near_the_biased_estimate(kernel, weighted):
    x, y = two_samples(40, 50, 3)
    options = bandwidth_of(kernel)
    if weighted:
        options["weights"] = torch.arange(40.0), torch.ones(50)
    exact = F.mmd(x, y, kernel=kernel, **options)
    generator = torch.Generator().manual_seed(0)
    got = F.mmd(x, y, kernel=kernel, estimator="rff", features=40000, generator=generator, **options)
    torch.testing.assert_close(got, exact, rtol=0.03, atol=0)
    again = F.mmd(
        x, y, kernel=kernel, estimator="rff", features=40000, generator=generator.manual_seed(0), **options
    )
    assert torch.equal(got, again)


@pytest.mark.parametrize(
    ("estimator", "kernel"),
    [(e, k) for e in ("linear", "block") for k in KERNELS] + [("rff", "rbf"), ("rff", "laplace")],
)
def test_estimates_have_gradients(estimator, kernel):
    x, y = (z.requires_grad_() for z in two_samples(6, 7, 2))
    s = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)

    def function(x, y, s):
        options = {"bandwidths": s} if kernel in ("rbf", "laplace", "imq") else {}
        if estimator == "rff":
            options |= {"features": 5, "generator": torch.Generator().manual_seed(0)}
        return F.mmd(x, y, kernel=kernel, estimator=estimator, **options) + 0 * s.sum()

    assert torch.autograd.gradcheck(function, (x, y, s))
    assert torch.autograd.gradgradcheck(function, (x, y, s))


@pytest.mark.parametrize("estimator", ["linear", "block", "rff"])
@pytest.mark.parametrize("kernel", ["rbf", "laplace"])
def test_estimates_of_coinciding_rows_are_finite(estimator, kernel):
    x = torch.ones(6, 3, requires_grad=True)
    value = F.mmd(x, torch.ones(7, 3), kernel=kernel, estimator=estimator)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", ["linear", "block", "rff"])
def test_estimates_of_other_dtypes(estimator, dtype):
    x, y = (z.requires_grad_() for z in two_samples(40, 50, 6, dtype=dtype))
    options = {"estimator": estimator}
    with torch.autocast("cpu"):
        torch.manual_seed(0)
        value = F.mmd(x, y, **options)
    gradients = torch.autograd.grad(value, (x, y))
    torch.manual_seed(0)
    expected = F.mmd(x.detach().float(), y.detach().float(), **options)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)
    assert all(g.dtype == dtype for g in gradients)


@pytest.mark.parametrize("features", [3, 300])
@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("estimator", ["linear", "block"])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "poly"])
def test_estimates_of_any_scale(kernel, estimator, scale, features):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(24, features, generator=generator) * scale for _ in range(2))
    assert_scales(x, y, kernel=kernel, estimator=estimator)


@pytest.mark.parametrize("bandwidths", ["mean", "median"])
@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e25, 1e36])
@pytest.mark.parametrize(
    ("kernel", "estimator"),
    [
        (k, e)
        for k in ("rbf", "laplace", "imq")
        for e in ("linear", "block", "rff")
        if (k, e) != ("imq", "rff")
    ],
)
def test_estimates_of_scales_whose_rates_leave_float32(kernel, estimator, scale, bandwidths):
    x, y = (z * scale for z in two_samples(24, 24, 3, dtype=torch.float32))
    options = {"kernel": kernel, "estimator": estimator, "bandwidths": bandwidths}
    draw = lambda: {"generator": torch.Generator().manual_seed(1)}
    inputs = x.requires_grad_(), y.requires_grad_()
    units = [z.detach() / scale for z in inputs]
    units = [z.requires_grad_() for z in units]
    got, expected = F.mmd(*inputs, **options, **draw()), F.mmd(*units, **options, **draw())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    if scale < 1e30:  # of 1e36 the gradients are near float32's end
        for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, units), strict=True):
            torch.testing.assert_close(a.double() * scale, b.double(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("estimator", ["linear", "block", "rff"])
def test_estimates_with_bandwidths_far_apart(estimator):
    x, y = two_samples(24, 24, 3, dtype=torch.float32)
    options = {"estimator": estimator, "bandwidths": torch.tensor([1e-30, 1e30])}
    y[0] = x[0]
    inputs = x.requires_grad_(), y.requires_grad_()
    value = F.mmd(*inputs, **options, generator=torch.Generator().manual_seed(1))
    assert value.isfinite()


@pytest.mark.parametrize("features", [3, 300])
@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "poly"])
def test_the_definition_in_float32_takes_any_scale(kernel, scale, features):
    """It is what other devices than the CPU run."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(24, features, generator=generator) * scale for _ in range(2))
    with ops.use_backend("reference"):
        assert_scales(x, y, kernel=kernel)


def assert_scales(x, y, **options):
    inputs = x.requires_grad_(), y.requires_grad_()
    wide = [z.detach().double().requires_grad_() for z in inputs]
    got, expected = F.mmd(*inputs, **options), F.mmd(*wide, **options)
    torch.testing.assert_close(got.double() / expected.abs(), expected.sign(), rtol=0, atol=2e-3)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(a.double() / b.abs().max(), b / b.abs().max(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("estimator", ["linear", "block"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_estimates_of_what_is_no_number_are_none(kernel, estimator, value):
    x, y = torch.randn(16, 3), torch.randn(16, 3)
    x[3, 1] = value
    options = {"bandwidths": torch.tensor([1.0])} if kernel in ("rbf", "laplace", "imq") else {}
    assert F.mmd(x, y, kernel=kernel, estimator=estimator, **options).isnan()


def test_estimates_of_many_rows_agree():
    x, y = two_samples(4000, 4000, 2)
    exact = F.mmd(x, y)
    for estimator in ("linear", "block", "rff"):
        got = F.mmd(x, y, estimator=estimator, generator=torch.Generator().manual_seed(0))
        assert got.item() == pytest.approx(exact.item(), rel=0.25)


def test_random_features_compile_without_graph_breaks():
    x, y = (z.requires_grad_() for z in two_samples(20, 30, 4, dtype=torch.float32))
    compiled = torch.compile(F.mmd, fullgraph=True, backend="aot_eager")
    value = compiled(x, y, estimator="rff", features=20000)
    assert value.item() == pytest.approx(F.mmd(x, y).item(), rel=0.1)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (x, y)))


X, Y = torch.zeros(3, 2), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"estimator": "linear", "weights": (X[:, 0], Y[:, 0])}, "weights go with the estimators"),
        ({"estimator": "block", "class_conditional": (1, 2)}, "class_conditional goes with the estimators"),
        ({"estimator": "rff", "kernel": "imq"}, "estimator='rff' takes the kernels rbf and laplace"),
        ({"estimator": "rff", "features": 0}, "features must be an integer of at least 1"),
        ({"estimator": "block", "block_size": 1}, "block_size must be an integer of at least 2"),
        ({"estimator": "block", "block_size": 4}, "x must have at least 4 rows, got 3"),
    ],
)
def test_estimators_name_what_does_not_fit(options, says):
    with pytest.raises(ThawkitError, match=says):
        F.mmd(X, Y, **options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: losses.MMDLoss("foo"), "kernel must be one of .* got 'foo'"),
        (lambda: losses.MMDLoss(estimator="xx"), "estimator must be one of .* got 'xx'"),
        (lambda: losses.JointMMDLoss(["rbf", "foo"]), "kernel must be one of .* got 'foo'"),
        (lambda: losses.JointMMDLoss("foo"), "kernel must be one of .* got 'foo'"),
        (lambda: losses.JointMMDLoss(estimator="rff"), "estimator must be one of .* got 'rff'"),
        (lambda: losses.LocalMMDLoss("foo"), "kernel must be one of .* got 'foo'"),
    ],
)
def test_modules_refuse_unknown_names_when_they_are_made(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()


def test_modules_hand_their_options_on():
    x, y = two_samples(12, 15, 3, dtype=torch.float32)
    w = torch.rand(12), torch.rand(15)
    options = {"kernel": "poly", "estimator": "unbiased", "degree": 2, "offset": 0.5}
    assert torch.equal(losses.MMDLoss(**options)(x, y, weights=w), F.mmd(x, y, weights=w, **options))
    block = losses.MMDLoss("laplace", estimator="block", block_size=3)
    assert torch.equal(block(x, y), F.mmd(x, y, kernel="laplace", estimator="block", block_size=3))
    layers = [x, x[:, :2]], [y, y[:, :2]]
    for bandwidths in ("median", [(2.0, 3), torch.tensor([1.0])]):
        joint = losses.JointMMDLoss(["rbf", "imq"], bandwidths)
        expected = F.joint_mmd(*layers, kernel=["rbf", "imq"], bandwidths=bandwidths)
        assert torch.equal(joint(*layers), expected)
    labels, probabilities = torch.arange(12) % 3, torch.rand(15, 3)
    local = losses.LocalMMDLoss("imq", "median")
    expected = F.local_mmd(x, y, labels, probabilities, kernel="imq", bandwidths="median")
    assert torch.equal(local(x, y, labels, probabilities), expected)
    assert "kernel='poly'" in repr(losses.MMDLoss(**options))


def test_bandwidths_belong_to_their_modules():
    x, y = two_samples(12, 15, 3, dtype=torch.float32)
    learned = losses.MMDLoss(bandwidths=torch.nn.Parameter(torch.tensor([1.0, 2.0])))
    assert len(list(learned.parameters())) == 1
    learned(x, y).backward()
    assert learned.bandwidths.grad.abs().min() > 0
    moved = losses.MMDLoss(bandwidths=torch.tensor([1.0])).to(torch.float64)
    assert moved.bandwidths.dtype == torch.float64
    joint = losses.JointMMDLoss(bandwidths=[torch.nn.Parameter(torch.tensor([1.0])), torch.tensor([2.0])])
    assert len(list(joint.parameters())) == len(list(joint.buffers())) == 1
    joint([x, x], [y, y]).backward()
    assert next(joint.parameters()).grad is not None
