"""What frozen networks keep, on Triton kernels, interpreted (or on a GPU, where there is one)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from thawkit import ops
from thawkit.ops import frozen
from thawkit.ops.frozen.quantize import dequantize, dequantized_product, quantize

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ACTIVATIONS = {
    "relu": (frozen.packed_relu, F.relu),
    "relu6": (lambda x: frozen.packed_relu(x, 0.0, 6.0), F.relu6),
    "clamp": (lambda x: frozen.packed_clamp(x, -0.3, 0.7), lambda x: x.clamp(-0.3, 0.7)),
    "threshold": (lambda x: frozen.packed_threshold(x, 0.1, -2.0), lambda x: F.threshold(x, 0.1, -2.0)),
    "leaky": (lambda x: frozen.packed_leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    "hardsigmoid": (frozen.packed_hardsigmoid, F.hardsigmoid),
    "abs": (frozen.packed_abs, torch.abs),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_torch(name, channels_last):
    packed, stock = ACTIVATIONS[name]
    x = 3 * torch.randn(3, 5, 7, 11, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    upstream = torch.linspace(-1, 1, x.numel(), device=DEVICE).view_as(x)
    results = []
    for function in (packed, stock):
        leaf = x.detach().requires_grad_()
        with ops.use_backend("triton"):
            y = function(leaf)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, upstream)))
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-6, atol=0)


def test_bits_are_the_same_on_every_backend():
    y = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    masks = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            masks.append(frozen.pack_positive(y))
    assert torch.equal(*masks)


def _random(*shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE, dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def _on(backend: str, function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The result and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with ops.use_backend(backend):
        y = function(*leaves)
        upstream = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=y.dtype).view_as(y)
        return y.detach(), *torch.autograd.grad(y, leaves, upstream)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_batch_norm_with_a_sum_and_a_clamp_equals_the_reference(channels_last, keep):
    x, other = (_random(3, 5, 7, 11, channels_last=channels_last) + shift for shift in (0.0, 0.5))
    weight, bias, mean = _random(5), _random(5) - 1, _random(5) + 1
    variance = _random(5).square() + 0.5

    def function(x, other, weight, bias):
        return frozen.fixed_batch_norm(
            x, weight, bias, mean, variance, 1e-5, other=other, lower=0.0, upper=6.0, keep=keep
        )

    results = [_on(backend, function, x, other, weight, bias) for backend in ("triton", "reference")]
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-5, atol=2e-5)


# where windows overlap torch adds gradients up in half precision on a CPU, the kernel in float32
@pytest.mark.parametrize(("dtype", "window"), [(torch.float32, (3, 2, 1)), (torch.float16, (2, 2, 0))])
@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool_equals_torch_bit_for_bit(channels_last, dtype, window):
    x = (_random(2, 5, 13, 18, channels_last=channels_last) * 2).round().to(dtype)
    got = _on("triton", lambda x: frozen.packed_max_pool(x, 2, *window), x)
    truth = _on("reference", lambda x: F.max_pool2d(x, *window), x)
    for a, b in zip(got, truth, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dims", "shape"), [(1, (2, 3, 19)), (3, (1, 2, 5, 6, 7))])
def test_max_pool_of_rows_and_volumes_equals_torch(dims, shape):
    stock = F.max_pool1d if dims == 1 else F.max_pool3d
    got = _on("triton", lambda x: frozen.packed_max_pool(x, dims, 2, ceil_mode=True), _random(*shape))
    truth = _on("reference", lambda x: stock(x, 2, ceil_mode=True), _random(*shape))
    for a, b in zip(got, truth, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounded_values_come_back_as_on_the_reference(bits):
    x, g = _random(3, 5, 70), _random(3, 5, 70).flip(0)
    results = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            q = quantize(x, bits)
            results.append((q.codes, q.numbers, dequantize(q), dequantized_product(q, g)))
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_channel_sums_come_with_the_gradient(channels_last):
    g = _random(3, 5, 7, 11, channels_last=channels_last)
    mask = frozen.pack_positive(_random(3, 5, 7, 11, channels_last=channels_last) + 0.5)
    results = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            results.append(frozen.packed_relu_backward_sum(g, mask, g.stride()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-5)


def test_sums_of_nothing_are_0():
    with ops.use_backend("triton"):
        assert torch.equal(
            frozen.channel_sums(torch.ones(0, 4, device=DEVICE)), torch.zeros(4, device=DEVICE)
        )


def test_prelu_equals_torch():
    weight = _random(5)
    got = _on("triton", lambda x: frozen.packed_prelu(x, weight), _random(3, 5, 7))
    truth = _on("reference", lambda x: F.prelu(x, weight), _random(3, 5, 7))
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_dropout_drops_what_torch_drops():
    results = []
    for function, backend in ((frozen.packed_dropout, "triton"), (F.dropout, "reference")):
        torch.manual_seed(0)
        results.append(_on(backend, lambda x, f=function: f(x, 0.3), _random(7, 33)))
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-6, atol=0)
