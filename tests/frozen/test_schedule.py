"""Schedules: a stage is what freezing afresh gives, and an optimizer follows."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen import parameter_groups, set_epoch, trainable_parameters, update_optimizer
from thawkit.frozen.extension import Extended
from thawkit.frozen.schedule import parse_schedule

IMAGES = torch.zeros(2, 3, 32, 32)


def _look(model: nn.Module) -> list[object]:
    modules = [(type(m), m.training) for m in model.modules()]
    return [modules, [(n, p.requires_grad, p.shape) for n, p in model.named_parameters()]]


@pytest.mark.parametrize(
    "policies",
    [
        ("head", "last:2", "bias", "all"),
        ("last:3", "norm", "head"),
        ("channels:0.5", "lora:2", "channels:0.25:out:norm+bias", "head"),
    ],
)
def test_a_stage_is_a_fresh_freeze(build, gradients, policies: tuple[str, ...]) -> None:
    model = build("resnet18").double()
    images = IMAGES.double() + torch.rand(2, 3, 32, 32)
    thawkit.freeze(model, {2 * i: policy for i, policy in enumerate(policies)}, example=images)
    for epoch in (*range(2 * len(policies)), 2, 0):
        torch.manual_seed(0)  # as build does: adapters start from it
        report = set_epoch(model, epoch, example=images)
        fresh = build("resnet18").double()
        expected = thawkit.freeze(fresh, policies[epoch // 2], example=images)
        if epoch % 2:
            assert report is None
        if report is not None:
            assert str(report) == str(expected)
        assert _look(model) == _look(fresh)
        assert set_epoch(model, epoch) is None
        model.eval()
        fresh.eval()
        ours, theirs = gradients(model, images), gradients(fresh, images)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        model.train()
    thawkit.unfreeze(model)
    assert _look(model) == _look(build("resnet18").train())


def test_what_was_learnt_goes_on(build) -> None:
    model, images = build("small_cnn").eval(), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "lora:2@0,channels:0.5@1,norm@2", example=images)
    nn.init.normal_(model[3].lora_B)
    adapted = model(images).detach()
    set_epoch(model, 1)
    torch.testing.assert_close(model(images).detach(), adapted)
    with torch.no_grad():
        model[3].weight_channels.add_(1)
    moved = model(images).detach()
    clone = pickle.loads(pickle.dumps(model))
    for other in (model, copy.deepcopy(model), clone):
        set_epoch(other, 2)
        assert not any(isinstance(m, Extended) for m in other.modules())
        torch.testing.assert_close(other(images).detach(), moved)


def test_the_optimizer_follows(build) -> None:
    model, images = build("small_cnn"), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, {0: "head", 1: "channels:0.5+norm", 2: "head"}, example=images)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()

    step()
    scheduler.step()
    momentum = optimizer.state[model[8].weight]["exp_avg"]
    set_epoch(model, 1)
    update_optimizer(optimizer, parameter_groups(model, 0.1))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in trainable_parameters(model)
    }
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]
    assert optimizer.state[model[8].weight]["exp_avg"] is momentum
    before = model[3].weight_channels.detach().clone()
    step()
    assert not torch.equal(model[3].weight_channels, before)
    assert model[4].weight.grad is not None
    set_epoch(model, 2)
    assert model[4].weight.grad is None
    update_optimizer(optimizer, parameter_groups(model, 0.1))
    assert set(optimizer.state) == {model[8].weight, model[8].bias}
    with pytest.raises(ThawkitError, match="groups: expected 2, as the optimizer has, got 1"):
        update_optimizer(optimizer, [{"params": trainable_parameters(model)}])


def test_channels_are_settled_when_the_model_is_frozen(build) -> None:
    model = build("small_cnn")
    thawkit.freeze(model, {0: "3.weight", 1: "channels:0.5:norm"}, example=torch.zeros(2, 3, 8, 8))
    chosen = build("small_cnn")
    thawkit.freeze(chosen, "channels:0.5:norm", example=torch.zeros(2, 3, 8, 8))
    with torch.no_grad():
        model[3].weight[:, chosen[3].channel_of_input] = 0  # training, or a checkpoint
    set_epoch(model, 1)
    assert torch.equal(model[3].channel_of_input, chosen[3].channel_of_input)


def test_the_two_ways_of_writing_a_schedule() -> None:
    assert parse_schedule("head@0, last:2+norm@3 ,all@6") == {0: "head", 3: "last:2+norm", 6: "all"}
    assert parse_schedule("head") == {0: "head"}


@pytest.mark.parametrize(
    "train",
    [
        "head@1",
        "head@0,last:2",
        "head@0,all@0",
        "head@x",
        {1: "head"},
        {},
        {0: "head", "3": "all"},
        {0.0: "head"},
    ],
    ids=str,
)
def test_what_is_no_schedule(build, train: object) -> None:
    model = build("small_cnn")
    with pytest.raises(ThawkitError, match="train: expected a schedule"):
        thawkit.freeze(model, train)


def test_errors(build) -> None:
    model = build("small_cnn")
    with pytest.raises(ThawkitError, match=r"K from 1 to 2.*'last:9'"):
        thawkit.freeze(model, "head@0,last:9@5")
    with pytest.raises(ThawkitError, match=r"one that thawkit\.freeze has frozen"):
        set_epoch(model, 0)
    thawkit.freeze(model, "head", example=torch.zeros(2, 3, 8, 8))
    assert set_epoch(model, 7) is None
    with pytest.raises(ThawkitError, match="epoch: expected 0 or more, got -1"):
        set_epoch(model, -1)


def test_a_compiled_model_follows(build) -> None:
    model = build("small_cnn").eval()
    images = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, backend="aot_eager")
    thawkit.freeze(compiled, "head@0,bias@1", example=images)
    compiled(images).sum().backward()
    set_epoch(compiled, 1)
    compiled(images).sum().backward()
    assert model[3].bias.grad is not None
    assert model[3].weight.grad is None


def _blocks_that_train(model: nn.Module) -> set[str]:
    return {name[:8] for name, p in model.named_parameters() if p.requires_grad and name.startswith("layer")}


def test_blocks_drawn_for_each_epoch(build, gradients) -> None:
    model = build("resnet18").double()
    report = thawkit.freeze(model, "lisa:2", example=IMAGES.double())
    drawn = [_blocks_that_train(model)]
    assert report.notes == (f"drawn for epoch 0: {', '.join(sorted(drawn[0]))}",)
    for epoch in range(1, 12):
        assert set_epoch(model, epoch) is not None
        assert set_epoch(model, epoch) is None
        drawn.append(_blocks_that_train(model))
        others = {name for name, p in model.named_parameters() if not name.startswith("layer")}
        assert all(model.get_parameter(name).requires_grad for name in others)
    assert all(len(blocks) == 2 for blocks in drawn)
    assert len(set(map(frozenset, drawn))) > 3
    assert set().union(*drawn) == {f"layer{i}.{j}" for i in range(1, 5) for j in range(2)}

    resumed = pickle.loads(pickle.dumps(build("resnet18")))
    thawkit.freeze(resumed, "lisa:2")
    for epoch in (7, 3, 11, 0):
        set_epoch(resumed, epoch)
        assert _blocks_that_train(resumed) == drawn[epoch]
    thawkit.freeze(resumed, "lisa:2:1")
    other = []
    for epoch in range(12):
        set_epoch(resumed, epoch)
        other.append(_blocks_that_train(resumed))
    assert other != drawn

    images = IMAGES.double() + torch.rand(2, 3, 32, 32)
    stock = build("resnet18").double().eval()
    for name, p in stock.named_parameters():
        p.requires_grad_(model.get_parameter(name).requires_grad)
    ours, theirs = gradients(model.eval(), images), gradients(stock, images)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-12)
    thawkit.unfreeze(model)
    assert _look(model.train()) == _look(build("resnet18").train())


def test_drawn_blocks_within_a_schedule_and_beside_adapters(build) -> None:
    model = build("resnet18")
    thawkit.freeze(model, "head@0,lisa:1+lora:2@1,norm@3")
    assert not _blocks_that_train(model)
    for epoch in (1, 2):
        set_epoch(model, epoch)
        whole = {n[:8] for n, p in model.named_parameters() if n.endswith("conv1.weight") and p.requires_grad}
        (block,) = whole & {f"layer{i}.{j}" for i in range(1, 5) for j in range(2)}
        adapted = {name[:8] for name, m in model.named_modules() if isinstance(m, Extended)}
        assert block not in adapted
        assert len(adapted) >= 7
    assert set_epoch(model, 3) is not None
    assert set_epoch(model, 5) is None


@pytest.mark.parametrize("policy", ["lisa:0", "lisa:9", "lisa:x", "lisa:2:", "lisa:2:x"])
def test_what_cannot_be_drawn(build, policy: str) -> None:
    with pytest.raises(ThawkitError, match="lisa:K or lisa:K:SEED with K from 1 to 8"):
        thawkit.freeze(build("resnet18"), policy)


def test_stages_save_as_few_bits_as_the_first(build) -> None:
    fresh, model = build("small_cnn"), build("small_cnn")
    images = torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, {0: "head", 1: "all"}, example=images, act_bits=4)
    report = set_epoch(model, 1, example=images)
    expected = thawkit.freeze(fresh, "all", example=images, act_bits=4)
    assert report is not None
    assert report.fidelity is not None
    assert report.saved_bytes == expected.saved_bytes < (report.saved_bytes_before or 0) / 2
