"""What the tests of losses share: comparison with a definition in float64, and what every loss keeps to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def values_and_gradients(function: Function, *inputs: Tensor) -> list[Tensor]:
    """Return the value and the gradients of a sum of its elements with unequal weights."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.linspace(0.5, 2.0, out.numel(), dtype=out.dtype).reshape(out.shape)
    gradients = torch.autograd.grad((out * upstream).sum(), leaves, allow_unused=True)
    return [
        out.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)),
    ]


def assert_is(function: Function, definition: Function, *inputs: Tensor, rtol=2e-4, atol=2e-5) -> None:
    """Compare ``function`` in the dtype of its inputs, and in float64, with ``definition`` in float64."""
    wide = [x.double() for x in inputs]
    truth = values_and_gradients(definition, *wide)
    in_float64 = values_and_gradients(function, *wide)
    got = values_and_gradients(function, *inputs)
    assert all(x.dtype == torch.float64 for x in in_float64)
    assert [x.dtype for x in got] == [torch.float32, *(x.dtype for x in inputs)]
    for exact, double, single in zip(truth, in_float64, got, strict=True):
        assert torch.isfinite(single).all()
        largest = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(double, exact, rtol=1e-9, atol=1e-11 * (1 + largest))
        torch.testing.assert_close(single.double(), exact, rtol=rtol, atol=atol * (1 + largest))


def assert_differentiable_twice(function: Function, *inputs: Tensor) -> None:
    """Compare first and second derivatives with finite differences."""
    leaves = tuple(x.double().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def assert_layout_does_not_matter(function: Function, *inputs: Tensor) -> None:
    """Every second column of something wider, and a transposed matrix, are matrices like any other."""
    expected = values_and_gradients(function, *inputs)
    for spread in (_every_second_column, _transposed):
        got = values_and_gradients(lambda *x, spread=spread: function(*(spread(each) for each in x)), *inputs)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def _every_second_column(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x


def _transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t() if x.dim() == 2 else x


def assert_half_precision_is_lifted(function: Function, *inputs: Tensor) -> None:
    """Half precision gives the float32 loss of the rounded inputs, and gradients in its own dtype.

    Scores are float32; the slopes of a bfloat16 product are rounded once, to 2^-9 of themselves.
    """
    for dtype in (torch.bfloat16, torch.float16):
        halves = [x.to(dtype) for x in inputs]
        got = values_and_gradients(function, *halves)
        expected = values_and_gradients(function, *(x.float() for x in halves))
        assert [x.dtype for x in got] == [torch.float32] + [dtype] * len(inputs)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-6)
        for a, b in zip(got[1:], expected[1:], strict=True):
            largest = b.abs().max().item() if b.numel() else 0.0
            torch.testing.assert_close(a, b.to(dtype), rtol=0.016, atol=largest * 2**-8)


def assert_autocast_changes_nothing(function: Function, *inputs: Tensor) -> None:
    """A loss is computed in full precision wherever it stands. (The backward pass is to stand outside.)"""

    def under_autocast(*x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*x)

    expected = values_and_gradients(function, *inputs)
    torch.testing.assert_close(values_and_gradients(under_autocast, *inputs), expected, rtol=0, atol=0)


def assert_compiles(function: Function, *inputs: Tensor, backend: str = "aot_eager") -> None:
    """One graph without breaks, forward and backward, that computes what eager does."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    got, expected = values_and_gradients(compiled, *inputs), values_and_gradients(function, *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
