"""What is kept of a frozen weight is never taken for another weight's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import thawkit
from thawkit.ops.frozen.packed import Fingerprint

MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 2)
    ),
}


def _pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A frozen model, its stock twin, both in evaluation mode, and an input."""
    torch.manual_seed(0)
    stock = MODELS[name]().eval()
    model = copy.deepcopy(stock)
    x = torch.randn(4, 64) if name == "linear" else torch.randn(4, 16, 8, 8)
    thawkit.freeze(model, "head", example=x)
    return model.eval(), stock, x


@pytest.mark.parametrize("name", MODELS)
def test_weights_lent_one_after_the_other(name: str) -> None:
    """Each takes the memory of the one before, and differs in one entry, as for finite differences."""
    model, stock, x = _pair(name)
    weight = stock[0].weight.detach().clone()
    with torch.no_grad():
        for index in range(8):
            lent = weight.clone()
            lent.view(-1)[17 * index + 3] += 50.0
            got, expected = (functional_call(m, {"0.weight": lent}, (x,)) for m in (model, stock))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
            del lent


@pytest.mark.parametrize("name", MODELS)
def test_weights_loaded_by_assignment(name: str) -> None:
    model, stock, x = _pair(name)
    with torch.no_grad():
        for index in range(4):
            state = {key: value.clone() for key, value in stock.state_dict().items()}
            state["0.weight"].view(-1)[17 * index + 3] += 50.0
            for m in (model, stock):
                m.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
            torch.testing.assert_close(model(x), stock(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(512, 8), (64, 16, 3, 3), (256,), (1000, 7)], ids=str)
def test_a_column_written_by_data_is_seen(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    made_of = Fingerprint(weight)
    for dim in range(len(shape) if len(shape) > 1 else 0):
        for index in range(0, shape[dim], max(1, shape[dim] // 8)):
            if weight.numel() // shape[dim] < 64:
                continue  # too little for a sample
            other = weight.select(dim, index).clone()
            weight.data.select(dim, index).neg_()
            assert not made_of.matches(weight), (dim, index)
            weight.data.select(dim, index).copy_(other)
    assert made_of.matches(weight)


def test_a_fingerprint_tells_layouts_and_dtypes_apart() -> None:
    weight = torch.zeros(4, 4)
    made_of = Fingerprint(weight)
    assert made_of.matches(weight)
    assert not made_of.matches(weight.t().clone().t())
    assert not made_of.matches(weight.view(torch.int32))


def test_what_inference_folds_serves_gradients_of_gradients(build) -> None:
    stock = build("small_cnn").eval()
    model, x = copy.deepcopy(stock), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "bias", example=x)
    model.eval()
    with torch.inference_mode():
        model(x)
    found = []
    for m in (model, stock):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(m(images).square().sum(), images, create_graph=True)
        biases = [p for name, p in m.named_parameters() if name.endswith("bias")]
        found.append(torch.autograd.grad(gradient.square().sum(), biases, allow_unused=True))
    for got, expected in zip(*found, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
