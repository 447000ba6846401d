"""Freezing and thawing: what stays, what comes back, and what goes on working."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import thawkit
from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen.layers import FrozenBatchNorm, Rewritten


def _state(model: nn.Module) -> list[object]:
    """Everything that a user could tell two models apart by."""
    modules = [
        (name, type(m), m.training, sorted(k for k in vars(m) if k != "_parameters"))
        for name, m in model.named_modules()
    ]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return [modules, parameters, [(name, id(b)) for name, b in model.named_buffers()]]


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
@pytest.mark.parametrize("training", [True, False])
def test_unfreeze_leaves_no_trace(build, name: str, training: bool) -> None:
    model = build(name).train(training)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    next(model.parameters()).requires_grad_(False)
    before, values = _state(model), {k: v.clone() for k, v in model.state_dict().items()}
    for policy in ("bias", "last:1", "all", "norm"):
        thawkit.freeze(model, policy)
    assert list(model.state_dict()) == list(values)
    assert [id(p) for p in model.parameters()] == [p[1] for p in before[1]]
    thawkit.unfreeze(model)
    assert _state(model) == before
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    thawkit.unfreeze(model)
    assert _state(model) == before


def test_freezing_again_plans_from_the_original(build) -> None:
    once, twice = build("resnet18"), build("resnet18")
    first = thawkit.freeze(once, "last:1")
    thawkit.freeze(twice, "bias")
    second = thawkit.freeze(twice, "last:1")
    assert str(first) == str(second)
    kinds = lambda model: [(type(m), m.training) for m in model.modules()]
    assert kinds(once) == kinds(twice)


def test_batch_norms_come_back_in_the_mode_asked_for_meanwhile(build) -> None:
    model = build("resnet18").eval()
    thawkit.freeze(model, "bias")
    model.train()
    assert model.relu.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    thawkit.unfreeze(model)
    assert all(m.training for m in model.modules())


def test_children_of_a_frozen_batch_norm_follow_the_mode() -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    thawkit.freeze(model, "bias")
    model.eval().train()
    assert model.bn1.act.training
    assert not model.bn1.training


def test_class_relations_and_hooks_survive(build) -> None:
    model = build("resnet18")
    calls = []
    model.layer1.register_forward_hook(lambda *_: calls.append("layer1"))
    model.conv1.register_forward_pre_hook(lambda *_: calls.append("conv1"))
    thawkit.freeze(model, "bias", example=torch.zeros(1, 3, 32, 32))
    calls.clear()
    model(torch.zeros(1, 3, 32, 32))
    assert calls == ["conv1", "layer1"]
    assert isinstance(model.conv1, Rewritten)
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert isinstance(model.layer1[0].relu, nn.ReLU)


def test_a_parametrization_added_to_a_frozen_model_outlives_unfreeze(build) -> None:
    model, images = build("small_cnn").eval(), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "head")
    parametrizations.weight_norm(model[3])
    expected, clone = model(images), copy.deepcopy(model)
    thawkit.unfreeze(model)
    assert not any(isinstance(m, Rewritten) for m in model.modules())
    torch.testing.assert_close(model(images), expected)  # was folded
    model[3].parametrizations.weight.original0.data.mul_(2)
    assert not torch.equal(model(images), expected)

    thawkit.freeze(model, "head")
    thawkit.unfreeze(model)
    parametrize.remove_parametrizations(model[3], "weight")
    assert type(model[3]) is nn.Conv2d
    assert isinstance(clone[3], Rewritten)
    torch.testing.assert_close(clone(images), expected)


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
def test_copies_and_pickles(build, name: str) -> None:
    model = build(name)
    thawkit.freeze(model, "bias")
    images = torch.randn(2, 3, 32, 32)
    expected = model.eval()(images)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    clones = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)
    for clone in clones:
        assert torch.equal(clone(images), expected)
        assert [type(m) for m in clone.modules()] == [type(m) for m in model.modules()]
        clone.train()
        thawkit.unfreeze(clone)
        assert not any(isinstance(m, Rewritten) for m in clone.modules())
        assert all(p.requires_grad for p in clone.parameters())
        assert all(m.training for m in clone.modules())
    assert isinstance(model.bn1, FrozenBatchNorm)


def test_state_travels_between_frozen_and_plain_models(build) -> None:
    frozen, plain = build("resnet18"), build("resnet18").eval()
    thawkit.freeze(frozen, "norm")
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.add_(0.01)
    assert plain.load_state_dict(frozen.state_dict()) == nn.modules.module._IncompatibleKeys([], [])
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(plain(images), frozen.eval()(images), rtol=1e-4, atol=0)
    frozen.load_state_dict(build("resnet18").state_dict())
    torch.testing.assert_close(build("resnet18").eval()(images), frozen(images), rtol=1e-4, atol=1e-5)


def test_batch_norms_of_a_new_head_go_on_learning_statistics() -> None:
    class Classifier(nn.Module):
        base_model_prefix = "base"

        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
            self.classifier = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.base(x))

    model = Classifier()
    report = thawkit.freeze(model, "head")
    model.train()
    model(torch.randn(8, 4) + 3)
    assert report.fixed_statistics == 1
    assert torch.equal(model.base[1].running_mean, torch.zeros(6))
    assert not torch.equal(model.classifier[1].running_mean, torch.zeros(6))


def test_unknown_classes_stay_and_stay_right(build, stock, gradients) -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    class Momentum(nn.BatchNorm2d):
        pass

    model = build("small_cnn")
    model[3].__class__ = Scaled
    thawkit.freeze(model, "bias")
    assert type(model[3]) is Scaled
    images = torch.randn(2, 3, 8, 8)
    ours, theirs = gradients(model, images), gradients(stock(model), images)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key])

    model[4].__class__ = Momentum
    with pytest.warns(ThawkitWarning, match="1 batch normalizations.*'4' \\(Momentum\\).*move"):
        thawkit.freeze(model, "bias")
    assert type(model[4]) is Momentum


def test_a_part_of_a_frozen_model_is_refused_and_a_frozen_part_is_taken_over(build) -> None:
    model = build("resnet18")
    thawkit.freeze(model, "bias")
    with pytest.raises(ThawkitError, match="part of a frozen model"):
        thawkit.freeze(model.layer1, "*.conv1.weight")
    thawkit.unfreeze(model)

    before = _state(model)
    thawkit.freeze(model.layer1, "*.conv1.weight")
    thawkit.freeze(model, "bias")
    assert not model.layer1[0].conv1.weight.requires_grad
    thawkit.unfreeze(model)
    assert _state(model) == before


def test_what_is_no_model() -> None:
    with pytest.raises(ThawkitError, match=r"model: expected a torch.nn.Module, got list"):
        thawkit.freeze([nn.Linear(2, 2)], "head")


def test_a_failing_example_leaves_the_model_as_it_was(build) -> None:
    model = build("resnet18")
    before = _state(model)
    with pytest.raises(ThawkitError, match="channels"):
        thawkit.freeze(model, "bias", example=torch.zeros(1, 5, 32, 32))
    assert _state(model) == before


def test_a_cache_that_is_no_path_is_named_before_anything_changes(build) -> None:
    model = build("resnet18")
    before = _state(model)
    with pytest.raises(ThawkitError, match="cache: expected a FeatureCache or the path of a folder, got 5"):
        thawkit.freeze(model, "bias", cache=5)  # type: ignore[arg-type]
    assert _state(model) == before


def test_no_warnings_where_all_is_well(build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thawkit.freeze(build("resnet18"), "last:1")


@pytest.mark.parametrize(
    ("train", "example", "message"),
    [
        ([], None, "train: expected head, .*got an empty list"),
        ("bias", torch.zeros(0, 3, 16, 16), "example: expected a batch of at least one sample"),
        ("bias", torch.zeros(1, 1, 16, 16), "example: the model fails on it: RuntimeError"),
        ("bias", "images", "example: the model fails on it: TypeError"),
    ],
)
def test_mistakes_are_named_and_leave_the_model_as_it_was(build, train, example, message: str) -> None:
    model = build("small_cnn")
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ThawkitError, match=message):
        thawkit.freeze(model, train, example=example)
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("policy", ["bias", "lora:2", "channels:0.5", {0: "norm", 1: "last:1"}])
def test_what_cannot_be_frozen_anew_stays_frozen_as_it_was(build, policy) -> None:
    model, images = build("resnet18"), torch.randn(2, 3, 32, 32)
    thawkit.freeze(model, policy, example=images)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    handle = model.conv1.register_forward_hook(lambda *_: None)
    before, logits = _state(model), model(images)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = torch.randn(2, 5, 32, 32)
    with pytest.raises(ThawkitError, match="the model fails on it"):
        thawkit.freeze(model, "head", example=wrong)
    if isinstance(policy, dict):
        with pytest.raises(ThawkitError, match="the model fails on it"):
            thawkit.frozen.set_epoch(model, 1, example=wrong)
    assert _state(model) == before
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(images), logits)
    handle.remove()
    assert not any(hook.__name__ == "<lambda>" for hook in model.conv1._forward_hooks.values())
    if isinstance(policy, dict):
        assert thawkit.frozen.set_epoch(model, 1, example=images) is not None
    thawkit.unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, Rewritten) for module in model.modules())


def test_buffers_that_a_forward_assigns_anew_stay_the_same() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("centre", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            self.centre = 0.9 * self.centre + 0.1 * y.detach().mean(0)
            return self.head(torch.relu(y - self.centre))

    model = Centred()
    centre = model.centre
    report = thawkit.freeze(model, "bias", example=torch.randn(3, 4), act_bits=4)
    report.forecast(8)
    assert model.centre is centre
    assert not centre.any()
    assert any("move in training by the model's own code: centre" in note for note in report.notes)


def test_layers_without_a_shape_and_inference_mode_are_refused() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ThawkitError, match=r"model: '0.weight' has no shape before the first forward"):
        thawkit.freeze(lazy, "head", example=torch.zeros(2, 3))
    lazy(torch.zeros(2, 3))
    with (
        torch.inference_mode(),
        pytest.raises(ThawkitError, match=r"example: .* inside torch.inference_mode"),
    ):
        thawkit.freeze(lazy, "bias", example=torch.zeros(2, 3))
    assert thawkit.freeze(lazy, "bias", example=torch.zeros(2, 3)).saved_bytes is not None
