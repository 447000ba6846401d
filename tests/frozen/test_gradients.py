"""Whole models: logits and gradients are the stock model's, and no statistics move."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import thawkit
from tests.frozen.small_models import MODELS, logits_of, settle, some_inputs

CASES = [
    (model, policy)
    for model in ("resnet18", "mobilenet_v2", "lite0")
    for policy in ("bias", "last:2+norm", "*.0.*")
]


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_equal_stock_in_float64(build, stock, gradients, name: str, policy: str) -> None:
    model = build(name).double()
    thawkit.freeze(model, policy)
    model.train()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours, theirs = gradients(model, images), gradients(stock(model), images)
    assert ours.keys() == theirs.keys()
    assert max(_relative(ours[k], theirs[k]) for k in ours) <= 1e-12


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_as_exact_as_stock_in_float32(build, stock, gradients, name: str, policy: str) -> None:
    """No further from float64 than twice stock's own float32."""
    model = build(name)
    thawkit.freeze(model, policy)
    model.train()
    images = torch.randn(2, 3, 32, 32)
    exact = gradients(stock(model).double(), images.double())
    ours, theirs = gradients(model, images), gradients(stock(model), images)
    for key in exact:
        assert _relative(ours[key], exact[key]) <= 2 * _relative(theirs[key], exact[key]) + 1e-6, key


@pytest.mark.parametrize("policy", ["bias", "norm", "last:1"])
def test_training_equals_stock_training_and_moves_no_statistics(build, stock, policy: str) -> None:
    model = build("mobilenet_v2")
    thawkit.freeze(model, policy)
    model.train()
    plain = stock(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    losses = []
    for net in (model, plain):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
        torch.manual_seed(2)
        for _ in range(4):
            if net is model:
                net.train()  # a training loop says so at every epoch
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert any(p.requires_grad for p in model.parameters())


def test_all_trains_as_if_nothing_had_been_done(build, gradients) -> None:
    model = build("resnet18")
    plain = copy.deepcopy(model)
    thawkit.freeze(model, "all")
    assert type(model.bn1) is nn.BatchNorm2d
    images = torch.randn(2, 3, 32, 32)
    ours, theirs = gradients(model, images), gradients(plain, images)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert not torch.equal(model.bn1.running_mean, build("resnet18").bn1.running_mean)


def test_thawing_by_hand_is_noticed_at_the_next_forward(build, stock, gradients) -> None:
    model = build("resnet18").double()
    thawkit.freeze(model, "bias")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("layer2.0.conv1.weight", "layer3.0.bn1.weight", "fc.bias"))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours, theirs = gradients(model, images), gradients(stock(model), images)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4
    assert max(_relative(ours[k], theirs[k]) for k in ours) <= 1e-12


@pytest.mark.parametrize("policy", ["bias", "norm", "lora:2", "channels:0.5", "channels:0.5:out"])
@pytest.mark.parametrize("family", ["resnet", "functional", "vit", "gpt2"])
def test_a_gradient_that_can_be_differentiated_again_is_the_gradient(family: str, policy: str) -> None:
    """Layers compute it in another way then; gradgradcheck holds that way against itself alone."""
    torch.manual_seed(0)
    model, inputs = MODELS[family]().double(), some_inputs(family, torch.float64)
    settle(model, inputs)
    thawkit.freeze(model, policy, example=inputs)
    trains = {name: p for name, p in model.train().named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trains.values():
            parameter += 0.1 * torch.randn_like(parameter)
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        loss = logits_of(model(inputs)).square().sum()
        found.append(torch.autograd.grad(loss, list(trains.values()), create_graph=again))
    for name, once, twice in zip(trains, *found, strict=True):
        torch.testing.assert_close(twice, once, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
