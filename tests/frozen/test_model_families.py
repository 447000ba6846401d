"""Families of models: the gradients of the plain model, whatever trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import thawkit
from tests.frozen.small_models import Tagger, bert, gpt2


def _images() -> Tensor:
    return torch.randn(2, 3, 64, 64, dtype=torch.float64)


def _tokens() -> Tensor:
    return torch.randint(1, 20, (2, 9))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "bert": (bert, _tokens),
    "gpt2": (gpt2, _tokens),
    "lstm": (Tagger, _tokens),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), _images),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), _images),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5), _images),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2), _images),
}
POLICIES = ["all", "bias", "norm", "head", "last:1", "lora:2", "channels:0.5"]
CASES = [(family, policy) for family in FAMILIES for policy in POLICIES[: 4 if family == "lstm" else None]]


def _gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of the dropouts
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    output = model(inputs)
    logits = getattr(output, "logits", output)
    found = torch.autograd.grad(logits.logsumexp(-1).sum(), list(trains.values()), allow_unused=True)
    return {name: g for name, g in zip(trains, found, strict=True) if g is not None}


@pytest.mark.parametrize(("family", "policy"), CASES)
def test_gradients_in_float64(family: str, policy: str, stock_form) -> None:
    make, inputs = FAMILIES[family]
    torch.manual_seed(0)
    model, x = make().double(), inputs()
    thawkit.freeze(model, policy, example=x)
    model.train()
    ours, theirs = _gradients(model, x), _gradients(stock_form(model), x)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-12 * max(scale, 1e-3))


@pytest.mark.parametrize(("family", "policy"), CASES)
def test_gradients_in_float32(family: str, policy: str, stock_form) -> None:
    """No further from float64 than twice eager's error, and a millionth of the largest gradient."""
    make, inputs = FAMILIES[family]
    torch.manual_seed(0)
    model, x = make(), inputs()
    single = x.float() if x.is_floating_point() else x
    thawkit.freeze(model, policy, example=single)
    model.eval()  # dropouts draw other numbers in float64
    stock = stock_form(model)
    ours, theirs = _gradients(model, single), _gradients(stock, single)
    truth = _gradients(stock.double(), single.double() if x.is_floating_point() else x)
    floor = 1e-6 * max(gradient.norm().item() for gradient in truth.values())
    for name, exact in truth.items():
        error, allowed = ((g[name].double() - exact).norm().item() for g in (ours, theirs))
        assert error <= 2 * allowed + floor, name
