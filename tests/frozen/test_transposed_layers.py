"""Transposed convolutions: no saved input, and the gradients of torch's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import thawkit
from thawkit.frozen.measure import saved_by_module
from thawkit.frozen.transposed_layers import FrozenConvTranspose2d

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BELOW = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "dilation": 2, "groups": 2, "bias": False},
    {"groups": 4, "padding": 1},
]


def _model(dims: int, geometry: dict, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(BELOW[dims](2, 4, 1), KINDS[dims](4, 8, 3, **geometry)).to(dtype)


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    trains = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(model(x).square().sum(), [x, *trains]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("policy", ["0.*", "*.bias"])
def test_gradients_and_bytes(dims: int, geometry: dict, policy: str) -> None:
    model = _model(dims, geometry)
    x = torch.randn(2, 2, *[5, 4, 3][:dims], dtype=torch.float64)
    report = thawkit.freeze(model, policy, example=x)
    assert report.saved_bytes == 0  # the first convolution's input is the example
    assert report.saved_bytes_before == 8 * 4 * x[:, 0].numel()
    stock = copy.deepcopy(model)
    for module in stock:
        module.__class__ = getattr(module, "stock", type(module))
    for samples in (x, x[0]):
        for ours, theirs in zip(_gradients(model, samples), _gradients(stock, samples), strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * max(scale, 1e-3))


def test_an_output_size_and_channels_last() -> None:
    model = _model(2, {"stride": 2, "padding": 1}, torch.float32).to(memory_format=torch.channels_last)
    thawkit.freeze(model, "0.*")
    x = torch.randn(2, 2, 5, 4).contiguous(memory_format=torch.channels_last)
    h = model[0](x)
    y, expected = model[1](h, output_size=[10, 8]), model[1].stock.forward(model[1], h, [10, 8])
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()


def test_second_derivatives() -> None:
    model = _model(2, {"stride": 2, "groups": 2})
    thawkit.freeze(model, "0.*")
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: model(x).square(), (x,))


def test_elsewhere_it_is_the_stock_layer() -> None:
    torch._dynamo.reset()  # which may have given up on nn.Sequential in other tests
    model = _model(2, {"stride": 2}, torch.float32)
    stock = copy.deepcopy(model)
    thawkit.freeze(model, "0.*")
    x = torch.randn(1, 2, 4, 4)
    expected = stock(x)
    assert type(model[1]) is FrozenConvTranspose2d
    for other in (
        torch.jit.script(model),
        torch.compile(model, backend="aot_eager", fullgraph=True),
        torch.export.export(model, (x,)).module(),
        pickle.loads(pickle.dumps(model)),
    ):
        torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda x: model(x))(x[None])[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_by_module(model, x, set())
        torch.testing.assert_close(model(x), stock(x))
    assert saved["1"] <= 2 * model[1].weight.numel()
    model[1].weight.requires_grad_()
    (ours,) = torch.autograd.grad(model(x).square().sum(), [model[1].weight])
    (theirs,) = torch.autograd.grad(stock(x).square().sum(), [stock[1].weight])
    torch.testing.assert_close(ours, theirs)
    thawkit.unfreeze(model)
    assert type(model[1]) is nn.ConvTranspose2d
