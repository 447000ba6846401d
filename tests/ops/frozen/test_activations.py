"""The activations of one or two saved bits an element: torch's values and gradients bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.ops.frozen.conftest import LAYOUTS, laid_out
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import (
    activations,
    packed_abs,
    packed_clamp,
    packed_hardsigmoid,
    packed_leaky_relu,
    packed_prelu,
    packed_threshold,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# ours, torch's, saved bits an element
PAIRS = {
    "clamp": (lambda x, **k: packed_clamp(x, -0.3, 0.7, **k), lambda x: x.clamp(-0.3, 0.7), 1),
    "clamp_exact": (lambda x, **k: packed_clamp(x, -0.5, 2, **k), lambda x: x.clamp(-0.5, 2), 1),
    "clamp_lower": (lambda x, **k: packed_clamp(x, 0.1, **k), lambda x: x.clamp(min=0.1), 1),
    "clamp_upper": (lambda x, **k: packed_clamp(x, None, 0.1, **k), lambda x: x.clamp(max=0.1), 1),
    "clamp_crossed": (lambda x, **k: packed_clamp(x, 1.0, -1.0, **k), lambda x: x.clamp(1.0, -1.0), 1),
    "threshold": (
        lambda x, **k: packed_threshold(x, 0.1, -20.3, **k),
        lambda x: F.threshold(x, 0.1, -20.3),
        1,
    ),
    "leaky": (lambda x, **k: packed_leaky_relu(x, **k), lambda x: F.leaky_relu(x), 1),
    "leaky_0": (lambda x, **k: packed_leaky_relu(x, 0.0, **k), lambda x: F.leaky_relu(x, 0.0), 1),
    "leaky_negative": (lambda x, **k: packed_leaky_relu(x, -0.3, **k), lambda x: F.leaky_relu(x, -0.3), 1),
    "hardsigmoid": (packed_hardsigmoid, F.hardsigmoid, 1),
    "abs": (packed_abs, torch.abs, 2),
}


def samples(shape, dtype):
    """Random numbers, and where they fit the values at which something happens."""
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    special = [0.0, -0.0, 0.1, -0.3, 0.7, -0.5, 2.0, 1.0, -1.0, 3.0, -3.0, math.inf, -math.inf, math.nan]
    if x.numel() >= 2 * len(special):
        flat = x.view(-1)
        flat[: len(special)] = torch.tensor(special, dtype=torch.float64).to(dtype)
        flat[-len(special) :] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return x


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_bit_for_bit(name, dtype, run):
    ours, theirs, _ = PAIRS[name]
    for shape in ((), (1,), (7,), (63,), (64,), (65,), (2, 3, 5, 7), (1000, 77)):
        x = samples(shape, dtype)
        assert_same(run(ours, x), run(theirs, x))
    assert_same(run(ours, x, special=True), run(theirs, x, special=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PAIRS)
def test_layouts(name, layout, run):
    ours, theirs, _ = PAIRS[name]
    x = laid_out(torch.randn(2, 6, 5, 4), layout)
    assert_same(run(ours, x), run(theirs, x))
    assert ours(x.detach().requires_grad_()).stride() == theirs(x).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PAIRS)
def test_in_place(name, layout):
    ours, theirs, _ = PAIRS[name]
    leaf = torch.randn(2, 6, 5, 4, requires_grad=True)
    results = []
    for function, options in ((ours, {"inplace": True}), (theirs, {})):
        x = laid_out(leaf, layout) * 2
        y = function(x, **options)
        assert (y.data_ptr() == x.data_ptr()) == bool(options)
        results.append((y, *torch.autograd.grad((y + x if options else 2 * y).square().sum(), leaf)))
    assert_same(*results)


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
@pytest.mark.parametrize("name", PAIRS)
def test_saves_bits(name, count, saved_bytes):
    ours, _, bits = PAIRS[name]
    if name.startswith("clamp") and not activations._CLAMPS:
        pytest.skip("this torch's clamp passes the gradient at a bound, so torch's own runs")
    x = torch.randn(count, requires_grad=True)
    assert saved_bytes(lambda: ours(x)) == bits * ((count + 7) // 8)
    assert saved_bytes(lambda: ours(x * 1, inplace=True)) == bits * ((count + 7) // 8)
    with torch.no_grad():
        assert ours(x).grad_fn is None


@pytest.mark.parametrize("name", PAIRS)
def test_double_backward(name):
    x, g = (torch.randn(50, requires_grad=True) for _ in range(2))
    ours, theirs, _ = PAIRS[name]
    if name == "hardsigmoid":  # torch has no second derivative of its own
        theirs = lambda x: F.hardtanh(x + 3, 0.0, 6.0) / 6
    results = []
    for function in (ours, theirs):
        (dx,) = torch.autograd.grad(function(x), x, g, create_graph=True)
        results.append((dx, *torch.autograd.grad(dx, g, torch.arange(50.0))))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_float64_and_transforms_go_by_torch(name):
    ours, theirs, _ = PAIRS[name]
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), theirs(x))
    assert torch.autograd.gradcheck(ours, (x,))
    x = torch.randn(6)
    assert torch.equal(
        torch.func.grad(lambda x: ours(x).sum())(x), torch.func.grad(lambda x: theirs(x).sum())(x)
    )


@pytest.mark.parametrize("name", PAIRS)
def test_empty(name, run):
    ours, theirs, _ = PAIRS[name]
    assert_same(run(ours, torch.empty(2, 0, 3)), run(theirs, torch.empty(2, 0, 3)))


@pytest.mark.parametrize("name", PAIRS)
def test_compiles_without_graph_breaks(name):
    torch.compiler.reset()  # each kind is compiled anew, and there is a limit to that
    x = torch.randn(3, 21, requires_grad=True)
    step = lambda x: (PAIRS[name][0](x * 2) * torch.arange(21)).sum()
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(step(x), x)[0])


def test_operators_are_well_formed():
    for x in (torch.randn(3, 21), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        for kind in ("clamp", "threshold", "leaky", "hardsigmoid", "abs"):
            torch.library.opcheck(torch.ops.thawkit.packed_activation.default, (x, kind, 0.1, 0.2))
        _, mask = torch.ops.thawkit.packed_activation(x, "abs", 0.0, 0.0)
        for kind in ("pass", "part", "two", "sign"):
            torch.library.opcheck(torch.ops.thawkit.masked_gradient.default, (x, mask, kind, 0.5, 2.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "weights"),
    [((7,), 1), ((), 1), ((3, 5), 5), ((2, 6, 5, 4), 6), ((2, 6, 5, 4), 1), ((4, 70, 40), 70)],
)
def test_prelu(shape, weights, dtype, run, saved_bytes):
    weight = torch.linspace(-0.5, 2, weights).to(dtype)
    x = samples(shape, dtype)
    ours, theirs = lambda x: packed_prelu(x, weight), lambda x: F.prelu(x, weight)
    assert_same(run(ours, x), run(theirs, x))
    assert_same(run(ours, x, special=len(shape) > 0), run(theirs, x, special=len(shape) > 0))
    leaf = x.requires_grad_()
    own = weight.untyped_storage().nbytes()  # saved, but it exists anyway
    assert saved_bytes(lambda: ours(leaf)) == (x.numel() + 7) // 8 + own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prelu_layouts(layout, run):
    x = laid_out(torch.randn(2, 6, 5, 4), layout)
    weight = torch.linspace(-0.5, 2, x.shape[1])
    assert_same(run(lambda x: packed_prelu(x, weight), x), run(lambda x: F.prelu(x, weight), x))


def test_prelu_double_backward_and_trainable_weight():
    x, g = (torch.randn(2, 3, 5, requires_grad=True) for _ in range(2))
    weight = torch.randn(3)
    results = []
    for function in (packed_prelu, F.prelu):
        (dx,) = torch.autograd.grad(function(x, weight), x, g, create_graph=True)
        results.append((dx, *torch.autograd.grad(dx, g, x.detach())))
    assert_same(*results)
    trains = weight.clone().requires_grad_()
    expected = torch.autograd.grad(F.prelu(x, trains).square().sum(), (x, trains))
    assert_same(torch.autograd.grad(packed_prelu(x, trains).square().sum(), (x, trains)), expected)


def test_a_thread_count_of_any_size_gives_the_same(run):
    threads = torch.get_num_threads()
    x = samples((300, 401), torch.float32)
    try:
        for name in ("leaky", "abs"):
            torch.set_num_threads(1)
            one = run(PAIRS[name][0], x)
            torch.set_num_threads(5)
            assert_same(run(PAIRS[name][0], x), one)
    finally:
        torch.set_num_threads(threads)


def test_forced_backends_and_bad_input():
    x = torch.randn(9, requires_grad=True)
    with ops.use_backend("reference"):
        assert "Packed" not in type(packed_abs(x).grad_fn).__name__
    with pytest.raises(ThawkitError, match="x must be float32"):
        packed_abs(torch.zeros(3).int())
    with pytest.raises(ThawkitError, match="weight must be float32"):
        packed_prelu(x, torch.ones(1).int())
    assert torch.equal(packed_clamp(x, 0.0, math.inf), x.clamp(0.0, math.inf))
    with pytest.raises(RuntimeError, match="must not be None"):
        packed_clamp(x)
