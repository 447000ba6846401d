"""Bits from a result, and the gradient with channel sums that they give."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.frozen.conftest import laid_out
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import (
    channel_sums,
    pack_clamp_,
    pack_positive,
    packed_relu,
    packed_relu_backward,
    packed_relu_backward_sum,
    reference,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOUNDS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-0.3, 0.7)]
SHAPES = [
    (3, 5),
    (70, 130),
    (2, 3, 49),
    (5, 17, 7, 7),
    (2, 64, 9, 13),
    (3, 1, 40, 40),
    (1, 8, 1, 1),
    (2, 3, 2, 3, 2),
]
ORDERS = ["contiguous", "channels_last", "reversed"]


def ordered(x, order):
    if order == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    dims = tuple(range(x.dim()))[::-1]
    return x.permute(dims).contiguous().permute(dims) if order == "reversed" else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_the_bits_of_a_result_are_those_of_its_clamp(bounds, dtype):
    lower, upper = bounds
    for count in (1, 8, 63, 64, 65, 1000):
        x = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
        y = reference.packed_relu(x, lower, upper)
        mask = pack_positive(y, lower, upper)
        assert mask.numel() == (count + 7) // 8
        bits = reference.unpack(mask, x.shape, x.stride())
        low, high = (torch.tensor(bound).to(dtype) for bound in bounds)
        assert torch.equal(bits, (x > low) & (x < high))
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 6.0] * 40).to(dtype)
    y = reference.packed_relu(special, lower, upper)
    with ops.use_backend("reference"):
        expected = pack_positive(y, lower, upper)
    assert torch.equal(pack_positive(y, lower, upper), expected)


def test_bits_lie_in_the_order_of_memory():
    y = torch.relu(torch.randn(2, 6, 5, 4)).to(memory_format=torch.channels_last)
    bits = reference.unpack(pack_positive(y), y.shape, y.stride())
    assert torch.equal(bits, y > 0)
    with pytest.raises(ThawkitError, match=r"without gaps, got strides \(120, 40, 4, 1\) for \(2, 3, 5, 4\)"):
        pack_positive(y.contiguous()[:, ::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", [*BOUNDS, (-math.inf, 0.7)])
def test_clamping_in_place_is_packed_relu(bounds, dtype):
    x = (torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    x.view(-1)[:6] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 6.0, 0.7]).to(dtype)
    if dtype == torch.float64:  # torch's own, whose gradient at NaN depends on the memory order
        x.view(-1)[0] = 0
    leaf = x.transpose(0, 2).clone().requires_grad_()
    expected = packed_relu(leaf, *bounds)
    y = leaf.detach().clone()
    mask = pack_clamp_(y, *bounds)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    g = torch.randn(5, 7, 6).to(dtype).requires_grad_()
    dx = packed_relu_backward(g, mask, y.stride())
    assert torch.equal(dx, torch.autograd.grad(expected, leaf, g)[0])
    (back,) = torch.autograd.grad(dx, g, torch.ones_like(dx))
    assert torch.equal(back, reference.unpack(mask, y.shape, y.stride()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_and_sums(shape, order, dtype):
    y = ordered(torch.relu(torch.randn(shape)).to(dtype), order)
    g = torch.randn(shape).to(dtype)
    y.select(1, 0).fill_(0)
    g.select(1, 0).fill_(math.inf)  # where the clamp passes nothing
    g[0, 0] = math.nan
    mask = pack_positive(y)
    for dim in range(-1, len(shape)):
        dx, sums = packed_relu_backward_sum(g, mask, y.stride(), dim=dim)
        assert all(a == b or n == 1 for a, b, n in zip(dx.stride(), y.stride(), shape, strict=True))
        assert dx.dtype == dtype
        assert torch.equal(dx, torch.where(y > 0, g, 0))
        others = [d for d in range(len(shape)) if d != dim % len(shape)]
        truth = torch.where(y > 0, g, 0).double().sum(others)
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(sums.double(), truth, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_without_a_mask(shape, order):
    g = ordered(torch.randn(shape), order)
    others = [d for d in range(len(shape)) if d != 1]
    torch.testing.assert_close(channel_sums(g).double(), g.double().sum(others), rtol=1e-6, atol=1e-5)
    dx, _ = packed_relu_backward_sum(g, None, g.stride())
    assert torch.equal(dx, g)


@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed"])
def test_sums_of_what_has_gaps(layout):
    g = laid_out(torch.randn(2, 6, 5, 4), layout)
    torch.testing.assert_close(channel_sums(g), g.sum((0, 2, 3)))


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_sums_are_as_near_the_truth_as_torch(order):
    g = ordered(torch.rand(8, 16, 112, 112), order)
    truth = g.double().sum((0, 2, 3))
    worst = lambda sums: (sums.double() - truth).abs().max().item()
    assert worst(channel_sums(g)) <= 2 * worst(g.sum((0, 2, 3)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_any_number_of_threads(order, threads):
    before = torch.get_num_threads()
    y = ordered(torch.relu(torch.randn(4, 40, 30, 31)), order)
    g = torch.randn(4, 40, 30, 31)
    torch.set_num_threads(threads)
    try:
        dx, sums = packed_relu_backward_sum(g, pack_positive(y), y.stride())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(dx, g * (y > 0))
    torch.testing.assert_close(sums.double(), (g * (y > 0)).double().sum((0, 2, 3)), rtol=1e-6, atol=1e-5)


def test_empty():
    g = torch.empty(0, 3, 4)
    mask = torch.empty(0, dtype=torch.uint8)
    dx, sums = packed_relu_backward_sum(g, mask, g.stride())
    assert dx.shape == g.shape
    assert torch.equal(sums, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_linear_in_the_gradient(dtype):
    y = torch.relu(torch.randn(3, 4, 5).to(dtype))
    mask = pack_positive(y)
    g = torch.randn(3, 4, 5, dtype=dtype, requires_grad=True)
    dx, sums = packed_relu_backward_sum(g, mask, y.stride())
    a, b = torch.randn_like(dx), torch.randn_like(sums)
    (got,) = torch.autograd.grad([dx, sums], g, [a, b], create_graph=True)
    torch.testing.assert_close(got, (a + b[:, None]) * (y > 0))
    (got,) = torch.autograd.grad(channel_sums(g), g, b)
    torch.testing.assert_close(got, b[:, None].expand_as(g))


def test_operators_are_well_formed():
    g = torch.randn(2, 3, 5)
    mask = torch.ops.thawkit.packed_bits(g, "relu", 0.0, 1.0)
    for arguments in (
        (mask, 1, None, True, True),
        (None, 2, None, False, True),
        (mask, 1, torch.ones(3), True, False),
    ):
        torch.library.opcheck(torch.ops.thawkit.masked_channel_sums.default, (g, *arguments))


def test_bad_input():
    g = torch.randn(2, 3, 5)
    with pytest.raises(
        ThawkitError, match=r"dim must be a dimension of g, which has shape \(2, 3, 5\), got 3"
    ):
        packed_relu_backward_sum(g, None, g.stride(), dim=3)
    with pytest.raises(
        ThawkitError, match=r"mask must hold 4 bytes, one bit an element of g, got shape \(5,\)"
    ):
        packed_relu_backward_sum(g, torch.zeros(5, dtype=torch.uint8), g.stride())
    with pytest.raises(ThawkitError, match=r"lower must be below upper, got 1\.0 and 0\.0"):
        pack_positive(g, 1.0, 0.0)
    with pytest.raises(ThawkitError, match="y must be float32"):
        pack_positive(g.int())
