"""The packed activations: equal to torch's in value and gradient, one bit an element saved."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops.frozen import packed_relu, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BOUNDS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-0.3, 0.7)]


def both(x, lower, upper):
    """Output and gradient of ours and torch's, with the same upstream gradient."""
    out = []
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    stock = F.hardtanh if upper < math.inf else lambda x, *bounds: torch.relu(x)
    for function in (packed_relu, stock):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(leaf, lower, upper)
        out.append((y.detach(), torch.autograd.grad(y, leaf, upstream)[0]))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (63,), (64,), (65,), (2, 3, 5, 7), (1000, 77)])
def test_equals_torch_bit_for_bit(shape, bounds, dtype):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    (y, dx), (expected, expected_dx) = both(x, *bounds)
    assert torch.equal(y, expected)
    assert torch.equal(dx, expected_dx)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_and_special_values(bounds, dtype):
    lower, upper = bounds
    x = torch.tensor(
        [lower, upper if upper < math.inf else 1e4, 0.0, -0.0, math.inf, -math.inf, math.nan] * 64
    ).to(dtype)
    (y, dx), (expected, expected_dx) = both(x, lower, upper)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(dx, expected_dx)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_layouts(layout):
    x = torch.randn(2, 6, 5, 4)
    x = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(1, 3),
        "strided": lambda: x[:, ::2, :, 1:],
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
    }[layout]()
    leaf = x.detach().requires_grad_()
    y = packed_relu(leaf, 0.0, 6.0)
    assert torch.equal(y, F.relu6(x))
    upstream = torch.randn_like(y).contiguous()
    (dx,) = torch.autograd.grad(y, leaf, upstream)
    assert torch.equal(dx, upstream * ((x > 0) & (x < 6)))
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


class _Gaps(torch.autograd.Function):
    """A copy with unused memory between its elements, and yet no view of anything."""

    @staticmethod
    def forward(ctx, x):
        return torch.empty_strided(x.shape, [2 * stride for stride in x.stride()]).copy_(x)

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "view", "gaps"])
def test_in_place(layout, bounds):
    leaf = torch.randn(2, 6, 5, 4, requires_grad=True)
    results = []
    for function, inplace in ((packed_relu, False), (packed_relu, True), (reference.packed_relu, True)):
        x = {
            "contiguous": lambda: leaf * 2,
            "channels_last": lambda: (leaf * 2).to(memory_format=torch.channels_last),
            "transposed": lambda: leaf.transpose(1, 3) * 2,
            "view": lambda: (leaf * 2)[:1],
            "gaps": lambda: _Gaps.apply(leaf * 2),
        }[layout]()
        y = function(x, *bounds, inplace=inplace)
        assert (y.data_ptr() == x.data_ptr()) == inplace
        results.append((y, *torch.autograd.grad((y + x if inplace else 2 * y).square().sum(), leaf)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_in_place_saves_one_bit_an_element():
    saved = []
    x = torch.randn(1000, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        packed_relu(x, inplace=True)
    assert sum(t.nbytes for t in saved) == 125


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda leaf: leaf, "a leaf Variable that requires grad"),
        (lambda leaf: (leaf * 1).chunk(2)[0], "returns multiple views"),
    ],
)
def test_what_torch_refuses_to_overwrite_stays_as_it_was(make, says):
    x = make(torch.linspace(-1, 1, 9).requires_grad_())
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match=says):
        packed_relu(x, inplace=True)
    assert torch.equal(x, before)


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
def test_saves_one_bit_an_element(count):
    saved = []
    x = torch.randn(count, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = packed_relu(x)
    assert sum(t.nbytes for t in saved) == (count + 7) // 8
    y.sum().backward()


def test_nothing_is_saved_without_gradient():
    x = torch.randn(10, requires_grad=True)
    with torch.no_grad():
        assert packed_relu(x).grad_fn is None
    assert packed_relu(x.detach()).grad_fn is None


def test_double_backward_is_the_mask_again():
    x = torch.randn(50, requires_grad=True)
    g = torch.randn(50, requires_grad=True)
    (dx,) = torch.autograd.grad(packed_relu(x), x, g, create_graph=True)
    (dg,) = torch.autograd.grad(dx, g, torch.ones(50))
    assert torch.equal(dg, (x > 0).float())


def test_float64_goes_by_the_reference():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed_relu(x, -1.0, 1.0), (x,))


def test_operators_are_well_formed():
    x = torch.randn(3, 21)
    _, mask = torch.ops.thawkit.packed_activation(x, "relu", 0.0, 6.0)
    torch.library.opcheck(torch.ops.thawkit.packed_activation.default, (x, "relu", 0.0, 6.0))
    torch.library.opcheck(torch.ops.thawkit.packed_bits.default, (x, "relu", 0.0, 6.0))
    arguments = torch.randn(3, 21), mask, "pass", 1.0, 0.0
    torch.library.opcheck(torch.ops.thawkit.masked_gradient.default, arguments)


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_without_graph_breaks(inplace):
    x = torch.randn(3, 21, requires_grad=True)
    step = lambda x: (packed_relu(x * 2, 0.0, 1.0, inplace=inplace) * torch.arange(21)).sum()
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(step(x), x)[0])


def test_bad_input():
    with pytest.raises(ThawkitError, match="x must be float32"):
        packed_relu(torch.zeros(3).int())
    with pytest.raises(ThawkitError, match=r"lower must be below upper, got 1\.0 and 0\.0"):
        packed_relu(torch.zeros(3), 1.0, 0.0)
