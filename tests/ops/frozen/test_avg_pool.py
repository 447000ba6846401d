"""Average pooling that saves nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import adaptive_avg_pool, avg_pool

STOCK = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
STOCK_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

CASES = [
    (1, (2, 3, 11), (3, 2, 1, True, False)),
    (1, (3, 10), (2,)),
    (2, (2, 3, 12, 10), (2,)),
    (2, (2, 4, 9, 11), ((3, 2), (2, 1), (1, 1), True, False)),
    (2, (3, 9, 9), (3, None, 0, False, True, 5)),
    (3, (1, 3, 6, 7, 8), (2, 2, 1, True, True)),
    (3, (2, 4, 4, 4), (2,)),
]
ADAPTIVE = [
    (1, (2, 3, 11), 4),
    (1, (3, 10), 1),
    (2, (2, 3, 14, 15), 7),
    (2, (2, 4, 9, 11), (3, None)),
    (2, (4, 9, 11), (None, 2)),
    (2, (2, 3, 5, 5), 1),
    (3, (1, 3, 6, 7, 8), (2, 3, None)),
    (3, (1, 3, 6, 7, 8), 2),
]
PAIRS = [(avg_pool, STOCK, *case) for case in CASES] + [
    (adaptive_avg_pool, STOCK_ADAPTIVE, dims, shape, (size,)) for dims, shape, size in ADAPTIVE
]
NAMES = [f"{ours.__name__}-{dims}-{shape}-{options}" for ours, _, dims, shape, options in PAIRS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", PAIRS, ids=NAMES)
def test_equals_torch_bit_for_bit_and_saves_nothing(case, last, dtype, run, saved_bytes):
    ours, stock, dims, shape, options = case
    if stock[dims] is F.avg_pool3d and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("torch has no such pool on the CPU")
    x = torch.randn(shape).to(dtype)
    if last:
        x = x.movedim(-dims - 1, -1).contiguous().movedim(-1, -dims - 1)
    y, dx = run(lambda x: ours(x, dims, *options), x)
    expected, expected_dx = run(lambda x: stock[dims](x, *options), x)
    assert y.dtype == dx.dtype == dtype
    assert torch.equal(y, expected)
    assert torch.equal(dx, expected_dx)
    assert y.stride() == expected.stride()
    assert dx.stride() == expected_dx.stride()
    leaf = x.requires_grad_()
    assert saved_bytes(lambda: ours(leaf, dims, *options)) == 0


@pytest.mark.parametrize("case", PAIRS, ids=NAMES)
def test_derivatives(case):
    ours, _, dims, shape, options = case
    x = torch.randn(*[min(size, 5) for size in shape], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x, dims, *options), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ours(x, dims, *options), (x,))


@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed", "sliced channels-last"])
def test_layouts(layout, run):
    x = torch.randn(4, 6, 9, 10)
    x = {
        "strided": lambda: x[:, ::2, :, 1:],
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
        "transposed": lambda: x.transpose(1, 3),
        "sliced channels-last": lambda: x.to(memory_format=torch.channels_last)[:, 1:5],
    }[layout]()
    for ours, stock, options in ((avg_pool, F.avg_pool2d, 3), (adaptive_avg_pool, F.adaptive_avg_pool2d, 4)):
        got, expected = run(lambda x: ours(x, 2, options), x), run(lambda x: stock(x, options), x)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_empty_batch():
    x = torch.empty(0, 3, 8, 8, requires_grad=True)
    for y in (avg_pool(x, 2, 2), adaptive_avg_pool(x, 2, 4)):
        assert y.shape == (0, 3, 4, 4)
        y.sum().backward()


def test_transforms_compiler_and_reference_take_torchs_own():
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(F.avg_pool2d(x, 2).sum(), x)
    assert torch.equal(torch.func.grad(lambda x: avg_pool(x, 2, 2).sum())(x.detach()), expected)
    compiled = torch.compile(lambda x: avg_pool(x, 2, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x).sum(), x)[0], expected)
    with ops.use_backend("reference"):
        assert type(avg_pool(x, 2, 2).grad_fn).__name__ == "AvgPool2DBackward0"


def test_bad_input():
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    with pytest.raises(ThawkitError, match="dims must be 1, 2 or 3, got 0"):
        avg_pool(x, 0, 2)
    with pytest.raises(ThawkitError, match="x must be float32"):
        adaptive_avg_pool(torch.zeros(1, 2, 6, 6).int(), 2, 2)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        avg_pool(x, 2, 2, 2, 2)
