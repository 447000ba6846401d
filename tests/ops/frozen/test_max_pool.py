"""Max-pooling with codes of a few bits: torch's values, choices and gradients bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import packed_max_pool
from thawkit.ops.frozen.max_pool import _indices, _MaxPool

STOCK = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# shape, then kernel_size, stride, padding, dilation, ceil_mode
CASES = [
    ((2, 3, 12, 10), 2, None, 0, 1, False),
    ((2, 3, 13, 37), 3, 2, 1, 1, False),
    ((1, 5, 112, 112), 3, 2, 1, 1, False),
    ((2, 17, 7, 9), (2, 3), (1, 2), (1, 1), (2, 1), True),
    ((2, 8, 7, 9), 3, 1, 1, 1, False),
    ((3, 4, 9, 8), (5, 4), (3, 4), (2, 2), 1, True),
    ((1, 4, 20, 21), 5, 7, 0, 1, True),
    ((2, 3, 9, 9), 2, 2, 1, 3, True),
    ((2, 3, 40, 41), 16, 3, 8, 1, False),
    ((2, 3, 6, 5), 1, 1, 0, 1, False),
    ((4, 9, 10), 3, 2, 1, 1, False),
    ((2, 35, 6, 6), 2, None, 0, 1, True),
    ((2, 128, 6, 6), 3, 2, 1, 1, False),
]
CASES_1D = [
    ((2, 3, 11), 3, 2, 1, 1, False),
    ((4, 20), 2, None, 0, 1, True),
    ((1, 70, 9), (3,), 1, 1, 2, False),
]
CASES_3D = [
    ((2, 3, 6, 7, 8), 2, None, 0, 1, False),
    ((1, 4, 5, 6, 9), (3, 2, 3), (2, 1, 2), 1, (1, 2, 1), True),
    ((3, 4, 4, 4), 3, 2, 1, 1, False),
]
ALL = [(dims, *case) for dims, cases in ((1, CASES_1D), (2, CASES), (3, CASES_3D)) for case in cases]


def numbers(shape, kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    if kind == "ties":
        return x.round()
    if kind == "special":
        draw = torch.rand(shape, generator=generator)
        x[draw < 0.15] = math.nan
        x[(draw > 0.15) & (draw < 0.25)] = math.inf
        x[draw > 0.4] = -math.inf
    return x


def compare(dims, x, *options):
    results = []
    for function in (packed_max_pool, lambda x, dims, *options: STOCK[dims](x, *options)):
        leaf = x.detach().requires_grad_()
        y = function(leaf, dims, *options)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
        results.append((y, torch.autograd.grad(y, leaf, upstream)[0]))
    (y, dx), (expected, expected_dx) = results
    assert "MaxPool" in type(y.grad_fn).__name__ or y.grad_fn.name().startswith(("Squeeze", "_MaxPool"))
    assert y.dtype == x.dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dx, expected_dx, rtol=0, atol=0, equal_nan=True)
    return y, expected, dx, expected_dx


@pytest.mark.parametrize("kind", ["plain", "ties", "special"])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_equals_torch_bit_for_bit(case, kind):
    dims, shape, *options = case
    y, expected, dx, expected_dx = compare(dims, numbers(shape, kind), *options)
    assert y.stride() == expected.stride()
    assert dx.stride() == expected_dx.stride()


@pytest.mark.parametrize("kind", ["plain", "ties", "special"])
@pytest.mark.parametrize("case", [case for case in ALL if len(case[1]) == case[0] + 2], ids=str)
def test_channels_last(case, kind):
    dims, shape, *options = case
    x = numbers(shape, kind).movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "special":
        x[x == -math.inf] = -5  # torch's channels-last 3-d pool takes another plane's element for -inf alone
    y, expected, dx, expected_dx = compare(dims, x, *options)
    assert y.stride() == expected.stride()
    assert dx.stride() == expected_dx.stride()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_choice_among_infinities_does_not_depend_on_the_layout(case):
    dims, shape, *options = case
    if len(shape) != dims + 2:
        pytest.skip("without a batch there is one layout")
    x = numbers(shape, "special")
    gradients = []
    for laid in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        leaf = laid.detach().requires_grad_()
        y = packed_max_pool(leaf, dims, *options)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        gradients.append(torch.autograd.grad(y, leaf, upstream)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_half_precision(case, dtype):
    dims, shape, *options = case
    x = numbers(shape, "ties").to(dtype)
    compare(dims, x, *options)
    if len(shape) == dims + 2:
        compare(dims, x.movedim(1, -1).contiguous().movedim(-1, 1), *options)


@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed", "sliced channels-last"])
def test_layouts(layout):
    x = torch.randn(4, 6, 9, 10)
    x = {
        "strided": lambda: x[:, ::2, :, 1:],
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
        "transposed": lambda: x.transpose(1, 3),
        "sliced channels-last": lambda: x.to(memory_format=torch.channels_last)[:, 1:5],
    }[layout]()
    y, expected, *_ = compare(2, x, 3, 2, 1, 1, False)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_codes_name_torchs_indices(case):
    dims, shape, *options = case
    if dims == 1 or len(shape) != dims + 2:
        pytest.skip("the operator takes batches of two or three sizes")
    x = numbers(shape, "special")
    _, index = STOCK[dims](x, *options, return_indices=True)
    for laid in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        y = packed_max_pool(laid.detach().requires_grad_(), dims, *options)
        assert isinstance(y.grad_fn, _MaxPool._backward_cls)
        assert torch.equal(_indices(*y.grad_fn.saved_tensors, tuple(y.shape), *y.grad_fn.rest), index)


@pytest.mark.parametrize(
    ("kernel", "bits"), [(1, 2), (2, 2), ((1, 4), 2), (3, 4), (4, 4), ((1, 5), 4), (5, 8), (16, 8)]
)
def test_saves_codes_only(kernel, bits, saved_bytes):
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    y = packed_max_pool(x, 2, kernel)
    assert saved_bytes(lambda: packed_max_pool(x, 2, kernel)) == 16 * math.ceil(y[0, 0].numel() * bits / 8)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert saved_bytes(lambda: packed_max_pool(last, 2, kernel)) == y.numel() * bits // 8
    with torch.no_grad():
        assert packed_max_pool(x, 2, kernel).grad_fn is None


def test_double_backward():
    for dims, shape in ((1, (2, 3, 9)), (2, (2, 3, 7, 8)), (3, (1, 2, 5, 6, 7))):
        for x in (torch.randn(shape), torch.randn(shape).movedim(1, -1).contiguous().movedim(-1, 1)):
            results = []
            for function in (packed_max_pool, lambda x, dims, *options: STOCK[dims](x, *options)):
                leaf = x.detach().requires_grad_()
                y = function(leaf, dims, 3, 2, 1)
                g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
                (dx,) = torch.autograd.grad(y, leaf, g, create_graph=True)
                (dg,) = torch.autograd.grad(dx.square().sum(), g, create_graph=True)
                results.append((dx, dg, *torch.autograd.grad(dg.square().sum(), g)))
            for ours, theirs in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_what_the_kernel_does_not_know_goes_by_torch():
    x = torch.randn(1, 2, 20, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed_max_pool(x, 2, 3, 2, 1), (x[..., :6, :6],))
    x = torch.randn(1, 2, 20, 20, requires_grad=True)
    assert torch.equal(packed_max_pool(x, 2, 17), F.max_pool2d(x, 17))
    with pytest.raises(RuntimeError, match="Output size is too small"):
        packed_max_pool(x, 2, 2, 2, 1, 30, True)
    got = torch.func.grad(lambda x: packed_max_pool(x, 2, 2).sum())(x.detach())
    assert torch.equal(got, torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0])
    with ops.use_backend("reference"):
        assert "_MaxPool" not in type(packed_max_pool(x, 2, 2).grad_fn).__name__


def test_empty_batch():
    x = torch.empty(0, 3, 8, 8, requires_grad=True)
    y = packed_max_pool(x, 2, 2)
    assert y.shape == (0, 3, 4, 4)
    y.sum().backward()


@pytest.mark.parametrize("last", [False, True])
def test_any_number_of_threads(last):
    before = torch.get_num_threads()
    x = torch.randn(3, 40, 33, 35)
    x = x.to(memory_format=torch.channels_last) if last else x
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            compare(2, x, 3, 2, 1, 1, False)
    finally:
        torch.set_num_threads(before)


def test_compiles_without_graph_breaks():
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    step = lambda x: packed_max_pool(x * 2, 2, 3, 2, 1).square().sum()
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(step(x), x)[0])


def test_operators_are_well_formed():
    windows = [4, 4], [3, 3], [2, 2], [1, 1], [1, 1]
    for x in (torch.randn(2, 3, 8, 7), torch.randn(2, 3, 8, 7).to(memory_format=torch.channels_last)):
        y, codes = torch.ops.thawkit.packed_max_pool(x, *windows)
        torch.library.opcheck(torch.ops.thawkit.packed_max_pool.default, (x, *windows))
        last = y.is_contiguous(memory_format=torch.channels_last)
        arguments = torch.randn_like(y), codes, [8, 7], last, *windows
        torch.library.opcheck(torch.ops.thawkit.packed_max_pool_backward.default, arguments)


def test_bad_input():
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    with pytest.raises(ThawkitError, match="dims must be 1, 2 or 3, got 4"):
        packed_max_pool(x, 4, 2)
    with pytest.raises(ThawkitError, match="x must be float32"):
        packed_max_pool(torch.zeros(1, 2, 6, 6).int(), 2, 2)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        packed_max_pool(x, 2, 2, 2, 2)
