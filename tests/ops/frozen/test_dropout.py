"""Dropout with one saved bit an element: torch's values, gradients and use of the generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.ops.frozen.conftest import LAYOUTS, laid_out
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import packed_dropout

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def both(x, *options, inplace=False):
    """Value, gradient and the generator's state afterwards, of ours and of torch's."""
    results = []
    for function in (packed_dropout, F.dropout):
        leaf = x.detach().requires_grad_()
        torch.manual_seed(3)
        y = function(leaf * 1 if inplace else leaf, *options, inplace=inplace)
        state = torch.get_rng_state()
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
        results.append((y.detach(), torch.autograd.grad(y, leaf, upstream)[0], state))
    return results


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert ours[0].stride() == theirs[0].stride()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_equals_torch_bit_for_bit(p, dtype, inplace):
    for shape in ((), (1,), (7,), (64,), (65,), (3, 50, 77), (0, 4)):
        assert_same(*both(torch.randn(shape).to(dtype), p, True, inplace=inplace))
        assert_same(*both(torch.randn(shape).to(dtype), p, False, inplace=inplace))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    assert_same(*both(laid_out(torch.randn(2, 6, 5, 4), layout), 0.4))


def test_special_values():
    assert_same(*both(torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0] * 50), 0.5))


@pytest.mark.parametrize("count", [1, 9, 1000])
def test_saves_one_bit_an_element(count, saved_bytes):
    x = torch.randn(count, requires_grad=True)
    assert saved_bytes(lambda: packed_dropout(x)) == (count + 7) // 8
    assert saved_bytes(lambda: packed_dropout(x * 1, inplace=True)) == (count + 7) // 8
    assert packed_dropout(x.detach()).grad_fn is None


def test_in_place_overwrites():
    x = torch.randn(100, requires_grad=True) * 1
    y = packed_dropout(x, inplace=True)
    assert y is x
    view = (torch.randn(100, requires_grad=True) * 1)[5:]
    assert packed_dropout(view, inplace=True).data_ptr() == view.data_ptr()


def test_double_backward():
    x, g = (torch.randn(50, requires_grad=True) for _ in range(2))
    results = []
    for function in (packed_dropout, F.dropout):
        torch.manual_seed(0)
        (dx,) = torch.autograd.grad(function(x), x, g, create_graph=True)
        results.append((dx, *torch.autograd.grad(dx, g, torch.arange(50.0))))
    assert_same(*results)


def test_transforms_compiler_and_reference_take_torchs_own():
    x = torch.randn(50, requires_grad=True)
    compiled = torch.compile(lambda x: packed_dropout(x), fullgraph=True, backend="aot_eager")
    assert (compiled(x) == 0).any()
    with ops.use_backend("reference"):
        assert "_Dropout" not in type(packed_dropout(x).grad_fn).__name__


def test_bad_input():
    with pytest.raises(ThawkitError, match="x must be float32"):
        packed_dropout(torch.zeros(3).int())
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        packed_dropout(torch.zeros(3, requires_grad=True), 1.5)
