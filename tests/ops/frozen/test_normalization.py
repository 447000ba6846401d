"""Normalization by fixed statistics with a sum and a clamp, against float64 and torch's own steps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import activations, fixed_batch_norm

BOUNDS = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-0.3, 0.7)]
SHAPES = [
    (4, 5),
    (2, 3, 49),
    (5, 17, 7, 7),
    (2, 64, 9, 13),
    (3, 1, 40, 40),
    (1, 8, 1, 1),
    (2, 3, 2, 3, 2),
    (70, 130),
    (3, 130, 5, 5),
    (2, 24, 30, 31),  # shared among threads
    (0, 4, 3, 3),
]


def inputs(shape, dtype=torch.float64, order="contiguous"):
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, other = draw(*shape), draw(*shape)
    if order == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    weight, bias, mean = draw(shape[1]), draw(shape[1]), draw(shape[1])
    variance = draw(shape[1]).square() + 0.1
    return [t.to(dtype) for t in (x, other)], [
        t.float().to(dtype if dtype == torch.float64 else torch.float32)
        for t in (weight, bias, mean, variance)
    ]


def stock(x, other, weight, bias, mean, variance, lower, upper):
    y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
    if other is not None:
        y = y + other
    return torch.clamp(y, lower, upper) if lower > -math.inf or upper < math.inf else y


def gradients(function, x, other, parameters, trains):
    leaves = [
        t.detach().clone().requires_grad_(n in trains)
        for n, t in zip("xowb", [x, other, *parameters[:2]], strict=True)
    ]
    y = function(*leaves, *parameters[2:])
    upstream = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    y.backward(upstream)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, bounds, order):
    (x, other), parameters = inputs(shape, order=order)

    def ours(x, other, weight, bias, mean, variance):
        return fixed_batch_norm(
            x, weight, bias, mean, variance, 1e-5, other=other, lower=bounds[0], upper=bounds[1]
        )

    truth = gradients(lambda *a: stock(*a, *bounds), x, other, parameters, "xowb")
    for found, expected in zip(gradients(ours, x, other, parameters, "xowb"), truth, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)

    before = stock(x, other, *parameters, -math.inf, math.inf)
    near = ((before - bounds[0]).abs() < 1e-5) | ((before - bounds[1]).abs() < 1e-5)
    single = [t.float() for t in parameters]
    torchs = gradients(lambda *a: stock(*a, *bounds), x.float(), other.float(), single, "xowb")
    found = gradients(ours, x.float(), other.float(), single, "xowb")
    for name, mine, theirs, exact in zip("yxowb", found, torchs, truth, strict=True):
        if not exact.numel():
            assert mine.shape == exact.shape
            continue
        scale = exact.abs().max()
        error, reference = ((t.double() - exact).abs() for t in (mine, theirs))
        right = error <= 2 * reference.max() + 1e-5 * scale
        # where rounding moves an element across a bound, its gradient is another one
        assert (right | near if name in "xo" else right).all(), name
    assert found[0].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_half_precision_is_no_further_from_the_truth_than_torch(bounds, order, dtype):
    (x, other), parameters = inputs((4, 33, 9, 7), dtype, order)
    lower, upper = bounds
    if math.isfinite(upper) and not activations._CLAMPS:
        pytest.skip("this torch's clamp passes the gradient at a bound")

    def ours(x, other, weight, bias, mean, variance):
        return fixed_batch_norm(x, weight, bias, mean, variance, 1e-5, other=other, lower=lower, upper=upper)

    wide = [t.double() for t in (x, other)], [t.double() for t in parameters]
    truth = gradients(lambda *a: stock(*a, *bounds), *wide[0], wide[1], "xowb")
    torchs = gradients(lambda *a: stock(*a, *bounds), x, other, parameters, "xowb")
    for mine, theirs, exact in zip(gradients(ours, x, other, parameters, "xowb"), torchs, truth, strict=True):
        assert mine.dtype == theirs.dtype
        error, reference = ((t.double() - exact).norm() for t in (mine, theirs))
        assert error <= 1.05 * reference + 1e-6 * exact.norm()


def test_it_saves_the_input_for_the_scale_alone():
    (x, other), (weight, bias, mean, variance) = inputs((2, 16, 8, 8), torch.float32)
    for trains, saved in (("w", {x.numel() * 4, x.numel() // 8}), ("xob", {x.numel() // 8})):
        leaves = [
            t.clone().requires_grad_(n in trains)
            for n, t in zip("xowb", (x, other, weight, bias), strict=True)
        ]
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t)
        with hooks:
            fixed_batch_norm(
                leaves[0], leaves[2], leaves[3], mean, variance, 1e-5, other=leaves[1], lower=0.0
            )
        assert {size for size in sizes if size > 100} == saved


@pytest.mark.parametrize("trains", ["x", "w", "b", "o", "xw", "xowb"])
def test_only_what_is_asked_for(trains):
    (x, other), parameters = inputs((3, 20, 5, 5), torch.float32)

    def ours(x, other, weight, bias, mean, variance):
        return fixed_batch_norm(x, weight, bias, mean, variance, 1e-5, other=other, lower=0.0)

    everything = gradients(ours, x, other, parameters, "xowb")
    for name, found, expected in zip(
        "yxowb", gradients(ours, x, other, parameters, trains), everything, strict=True
    ):
        assert torch.equal(found, expected) if name in trains + "y" else found is None


def test_second_derivatives():
    (x, other), parameters = inputs((2, 3, 4, 4))
    leaves = [t.requires_grad_() for t in (x, other, *parameters[:2])]

    def ours(x, other, weight, bias):
        return fixed_batch_norm(x, weight, bias, *parameters[2:], 1e-5, other=other, lower=0.0, upper=2.0)

    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)
    y = ours(*leaves)
    upstream = torch.randn_like(y)
    once = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    for a, b in zip(torch.autograd.grad(y, leaves, upstream, create_graph=True), once, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_not_a_number_passes_and_a_stopped_infinity_adds_nothing():
    x = torch.tensor([math.nan, -math.inf, math.inf, 1.0]).view(1, 1, 4).requires_grad_()
    weight = torch.ones(1, requires_grad=True)
    y = fixed_batch_norm(x, weight, None, torch.zeros(1), torch.ones(1), 0.0, lower=0.0)
    assert y[0, 0, 0].isnan()
    assert y[0, 0, 1:].tolist() == [0.0, math.inf, 1.0]
    y[0, 0, 1::2].sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]
    assert weight.grad.isnan() or weight.grad.item() == 1.0  # 0 times the NaN and the infinity that passed


def test_the_reference_says_the_same():
    (x, other), parameters = inputs((3, 20, 5, 5), torch.float32, "channels_last")

    def ours(x, other, weight, bias, mean, variance):
        return fixed_batch_norm(x, weight, bias, mean, variance, 1e-5, other=other, lower=0.0, upper=1.0)

    found = gradients(ours, x, other, parameters, "xowb")
    with ops.use_backend("reference"):
        expected = gradients(ours, x, other, parameters, "xowb")
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_wrong_shapes_are_named():
    (x, _), (weight, bias, mean, variance) = inputs((2, 3, 4, 4), torch.float32)
    with pytest.raises(ThawkitError, match=r"x must be \(N, 3, \*sizes\), got shape \(3, 4, 4\)"):
        fixed_batch_norm(x[0].transpose(0, 1).reshape(3, 4, 4), weight, bias, mean, variance, 1e-5)
    with pytest.raises(ThawkitError, match=r"other must have the shape of x, .* got \(2, 3, 4, 1\)"):
        fixed_batch_norm(x, weight, bias, mean, variance, 1e-5, other=x[..., :1])
