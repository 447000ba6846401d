"""One-bit activations on Triton kernels, interpreted (or on a GPU, where there is one), against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from thawkit import ops
from thawkit.ops import frozen

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
