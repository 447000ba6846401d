from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import thawkit
from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen.layers import FrozenBatchNorm
from thawkit.frozen.measure import saved_by_module
from thawkit.frozen.packs import forget
from thawkit.ops.frozen import onednn

MIB = 2**20


def test_bytes_of_a_small_network_exactly(build) -> None:
    """Worked out by hand for images (2, 3, 8, 8): float32 activations of 512 and 256 elements."""
    model = build("small_cnn")
    images = torch.randn(2, 3, 8, 8)
    pooled = 2 * 8 * 4  # what the trainable Linear needs
    report = thawkit.freeze(model, "bias", example=images)
    # before: both normalizations' inputs, ReLU's result (also the second convolution's input), ReLU6's input
    assert report.saved_bytes_before == 512 * 4 + 512 * 4 + 256 * 4 + 256 * 4 + pooled
    assert report.saved_bytes == 512 // 8 + 256 // 8 + pooled
    assert report.trainable == 4 + 8 + 8 + 8 * 3 + 3
    assert report.total == sum(p.numel() for p in model.parameters())
    assert report.fixed_statistics == 2
    assert report.eager == ()

    report = thawkit.freeze(model, "norm", example=images)
    assert report.saved_bytes == 512 * 4 + 256 * 4 + 512 // 8 + 256 // 8 + pooled
    report = thawkit.freeze(model, "head", example=images)
    assert report.saved_bytes == report.saved_bytes_before == pooled
    report = thawkit.freeze(model, "3.weight", example=images)  # needs its input, and the ReLU6 after it
    assert report.saved_bytes == 512 * 4 + 256 // 8
    report = thawkit.freeze(model, "0.weight", example=images)
    assert report.saved_bytes == 512 // 8 + 256 // 8
    report = thawkit.freeze(model, "all", example=images)
    assert report.saved_bytes == report.saved_bytes_before - 256 * 4 + 256 // 8  # the bits of the ReLU6


def test_a_relu_whose_result_is_kept_anyway_makes_no_mask(build) -> None:
    model = build("small_cnn")
    report = thawkit.freeze(model, "0.weight+3.weight", example=torch.randn(2, 3, 8, 8))
    assert model[2].kept
    assert report.saved_bytes == 512 * 4 + 256 // 8


@pytest.mark.parametrize(
    ("name", "policy", "ratio", "most"),
    [
        ("lite0", "bias", 90, 0.80 * MIB),
        ("mobilenet_v2", "bias", 20, 1.50 * MIB),
        ("resnet18", "bias", 4, 4.80 * MIB),  # max-pooling and its input remain
        ("lite0", "norm", 2.7, 27 * MIB),
        ("resnet18", "head", 1, 2048),
    ],
)
def test_bytes_of_real_networks(build, name: str, policy: str, ratio: float, most: float) -> None:
    report = thawkit.freeze(build(name), policy, example=torch.zeros(1, 3, 224, 224))
    assert report.saved_bytes is not None
    assert report.saved_bytes_before is not None
    assert report.saved_bytes <= most
    assert report.saved_bytes_before >= ratio * report.saved_bytes
    assert sum(row.saved_bytes or 0 for row in report.rows) == report.saved_bytes
    assert sum(row.saved_bytes_before or 0 for row in report.rows) == report.saved_bytes_before
    assert sum(row.trainable for row in report.rows) == report.trainable


def test_the_measure_agrees_with_the_graph(build) -> None:
    """Hooks and a walk over the graph's saved tensors are independent counts."""
    model = build("resnet18")
    thawkit.freeze(model, "norm", example=torch.zeros(1, 3, 64, 64))
    images = torch.randn(2, 3, 64, 64)
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), images)}
    output = model(images)
    sizes: dict[int, int] = {}
    queue, seen = [output.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
        for tensor in saved:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    fixed = {m for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert saved_by_module(model, images, fixed).total() == sum(sizes.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["bias", "all"])
def test_measuring_changes_nothing(build, training: bool, policy: str) -> None:
    model = build("mobilenet_v2").train(training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {name: m.training for name, m in model.named_modules() if not isinstance(m, nn.BatchNorm2d)}
    random = torch.get_rng_state()
    thawkit.freeze(model, policy, example=torch.randn(2, 3, 32, 32, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(m.training == modes[name] for name, m in model.named_modules() if name in modes)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_what_is_not_given_is_guessed_or_left_out(build) -> None:
    report = thawkit.freeze(build("lite0"), "bias")
    assert report.example == "measured on one blank 3x224x224 image"
    assert report.example in str(report)

    for model in (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 2)),  # 28 pixels, not 224
    ):
        report = thawkit.freeze(model, "bias")
        assert report.saved_bytes is None
        assert report.saved_bytes_before is None
        assert "not measured; pass example=" in str(report)


def test_examples_of_many_inputs() -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    bert = transformers.BertForSequenceClassification(config)
    tokens = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.ones(2, 4)}
    by_name = thawkit.freeze(bert, "bias", example=tokens)
    by_place = thawkit.freeze(bert, "bias", example=tuple(tokens.values()))
    assert by_name.saved_bytes == by_place.saved_bytes
    assert by_name.saved_bytes is not None
    assert by_name.saved_bytes > 0


def test_what_is_left_as_eager_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Mish(), nn.Flatten(), nn.Linear(144, 2))
    lines = str(thawkit.freeze(model, "0.bias", example=torch.zeros(1, 3, 8, 8))).splitlines()
    assert lines[-1] == "left as eager: 1 (0.6 KiB)"


def test_table(build) -> None:
    report = thawkit.freeze(build("resnet18"), "bias", example=torch.zeros(1, 3, 64, 64))
    lines = str(report).splitlines()
    assert lines[0].startswith("thawkit.freeze: train='bias' trains 7,365 of 11,179,077 parameters (0.07 %)")
    assert lines[1] == "20 batch normalizations stay in evaluation mode"
    assert "measured on the example" in lines[2]
    assert next(line for line in lines if line.startswith("Conv2d")).split()[:3] == ["Conv2d", "20", "20"]
    assert lines[-1].startswith("Linear")
    table = [line for line in lines if line.startswith(("layer", "Conv2d", "ReLU", "Linear", "BatchNorm2d"))]
    assert len({len(line) for line in table}) == 1


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=20
    )
    return transformers.BertForSequenceClassification(config)


def _vit(num_layers: int = 2) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=5,
    )


def _images(count: int) -> Tensor:
    return torch.zeros(count, 3, 32, 32)


def _tokens(count: int) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(6).repeat(count, 1), "attention_mask": torch.ones(count, 6)}


_FORECASTS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], tuple[str, ...]]] = {
    "resnet50": (torchvision.models.resnet50, _images, ("bias", "channels:0.5")),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, _images, ("bias", "norm", "all")),
    "lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), _images, ("bias", "last:2")),
    "vit": (_vit, _images, ("all", "bias", "lora:2")),
    "bert": (_bert, _tokens, ("all", "head", "lora-fa:2")),
}


@pytest.mark.parametrize(
    ("name", "policy"), [(name, policy) for name, (_, _, some) in _FORECASTS.items() for policy in some]
)
def test_forecasts_are_what_a_step_saves(name: str, policy: str) -> None:
    """Layer by layer, for batches smaller and larger than the example."""
    make, batch, _ = _FORECASTS[name]
    model = make()
    report = thawkit.freeze(model, policy, example=batch(4))
    assert report.forecast(4).saved_bytes == pytest.approx(report.saved_bytes, abs=64)
    fixed = {module for module in model.modules() if isinstance(module, FrozenBatchNorm)}
    for size in (3, 9):
        forecast = report.forecast(size)
        saved = saved_by_module(model, batch(size), fixed)
        assert forecast.saved_bytes == pytest.approx(saved.total(), rel=0.02)
        assert sum(forecast.by_module.values()) == forecast.saved_bytes
        assert {name for name, nbytes in saved.items() if nbytes} <= forecast.by_module.keys()
        for layer, nbytes in forecast.by_module.items():
            assert nbytes == pytest.approx(saved[layer], rel=0.02, abs=16), layer


def _held_by_a_step(model: nn.Module, batch: Callable[[], Any]) -> int:
    """Bytes at the peak of a real step, its input included; what a first one builds is there before."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        example = batch()
        output = model(**example) if isinstance(example, dict) else model(example)
        (output if isinstance(output, Tensor) else output.logits).sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    return max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("resnet50", "bias"),
        ("resnet50", "head"),
        ("mobilenet_v3", "norm"),
        ("lite0", "last:2"),
        ("vit", "all"),
        ("vit", "lora:2"),
        ("bert", "head"),
    ],
)
def test_the_largest_batch_is_what_a_step_holds_at_its_peak(name: str, policy: str) -> None:
    make, batch, _ = _FORECASTS[name]
    model = make()
    report = thawkit.freeze(model, policy, example=batch(4))
    model.train()
    told = [report.largest_batch(2**30, optimizer_states=states) for states in (0, 2)]
    assert told[0] >= told[1] > 0
    size = 48
    for module in model.modules():
        forget(module)  # layouts for batches of other sizes, as those of the example
    held = _held_by_a_step(model, lambda: batch(size))
    held += sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    held += thawkit.frozen.packed_bytes(model)
    held += sum(2 * p.nbytes for p in model.parameters() if p.requires_grad)
    assert 0.85 * size <= report.largest_batch(held) <= size


def test_the_largest_batch_of_little_memory_and_of_a_step_that_was_measured(build) -> None:
    model = build("resnet18")
    report = thawkit.freeze(model, "bias", example=torch.zeros(1, 3, 64, 64))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    assert report.largest_batch(0) == 0
    assert report.largest_batch(2**30) < 2**30 / (3 * 64 * 64 * 4)  # no more than inputs alone would be
    copied = pickle.loads(pickle.dumps(report))
    assert copied.largest_batch(2**31) == report.largest_batch(2**31)
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_largest_batch_of_what_cannot_run() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to("meta")
    report = thawkit.freeze(layers, "bias", example=torch.zeros(5, 4, device="meta"))
    with pytest.raises(ThawkitError, match="expected one with values"):
        report.largest_batch(2**30)


def test_forecasts_outlive_copies_but_not_another_policy(build) -> None:
    model = build("small_cnn")
    images = torch.randn(4, 3, 8, 8)
    report = thawkit.freeze(model, "bias", example=images)
    unasked = copy.deepcopy(report)
    expected = report.forecast(16)
    for same in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert same == report
        assert same.forecast(16) == expected
    with pytest.raises(ThawkitError, match="its model is gone or not as it was"):
        unasked.forecast(16)
    later = thawkit.freeze(model, "bias", example=images)
    thawkit.unfreeze(model)
    with pytest.raises(ThawkitError, match="its model is gone or not as it was"):
        later.forecast(16)
    assert report.forecast(16) == expected


def test_forecasts_that_cannot_be() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(ThawkitError, match="nothing was measured; freeze with example="):
        thawkit.freeze(layers, "bias").forecast(2)
    report = thawkit.freeze(layers, "bias", example=torch.zeros(5, 4))
    for wrong in (0, 1.5):
        with pytest.raises(ThawkitError, match="batch_size: expected an integer of at least 1"):
            report.forecast(wrong)  # type: ignore[arg-type]
    for memory in (-1, "8", float("inf"), float("nan"), None):
        with pytest.raises(ThawkitError, match=f"memory_bytes: expected a finite number .* got {memory!r}"):
            report.largest_batch(memory)  # type: ignore[arg-type]
    for states in (-1, "Adam"):
        with pytest.raises(ThawkitError, match=f"optimizer_states: expected a finite .* got {states!r}"):
            report.largest_batch(1000, optimizer_states=states)  # type: ignore[arg-type]

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.head = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            z = x * self.scale
            return self.head((z @ z.t()).exp().sum((0, 1)).view(1, 1))

    pairs = Pairs()
    with pytest.raises(ThawkitError, match="does not grow with it"):
        thawkit.freeze(pairs, "all", example=torch.zeros(200, 4)).forecast(2)


def test_the_report_says_what_the_minimum_is(build) -> None:
    report = thawkit.freeze(build("resnet18"), "norm", example=torch.zeros(2, 3, 64, 64))
    assert report.minimum_bytes is not None
    assert report.minimum_bytes <= report.saved_bytes <= 1.05 * report.minimum_bytes
    assert not report.saves_nothing
    assert "exact minimum without recomputation: " in str(report)
    assert "act_bits" not in str(report)
    channels = thawkit.freeze(build("resnet18"), "channels:0.5", example=torch.zeros(2, 3, 64, 64))
    assert channels.minimum_bytes is None


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3", "lite0"])
def test_what_is_saved_is_within_5_percent_of_the_minimum(name: str) -> None:
    make, batch, _ = _FORECASTS[name]
    model = make()
    for policy in ("bias", "norm", "last:2", "all"):
        report = thawkit.freeze(model, policy, example=batch(2))
        assert report.minimum_bytes <= report.saved_bytes <= 1.05 * report.minimum_bytes, policy


@pytest.mark.parametrize(("name", "policy"), [("resnet18", "last:1"), ("resnet50", "bias+layer3.0.*")])
def test_an_activation_called_twice_saves_no_result_for_itself_alone(name: str, policy: str) -> None:
    """A layer that trains takes what the block's ReLU gives first, and none what it gives last."""
    model = getattr(torchvision.models, name)(num_classes=3)
    report = thawkit.freeze(model, policy, example=torch.randn(2, 3, 64, 64))
    assert report.minimum_bytes <= report.saved_bytes <= 1.05 * report.minimum_bytes


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardsigmoid])
def test_activations_between_trainable_layers_save_next_to_nothing(kind: Any, inplace: bool) -> None:
    """A mask is worth its bits where the stock layer saves its input and the next layer the result."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), kind(inplace=inplace), nn.Conv2d(4, 4, 1), nn.Flatten())
    report = thawkit.freeze(model, "*.weight", example=torch.randn(2, 3, 8, 8))
    assert report.minimum_bytes == 2 * 4 * 64 * 4
    assert report.saved_bytes <= report.minimum_bytes * 33 / 32


def test_no_exact_saving_is_said_plainly() -> None:
    for policy in ("bias", "norm"):
        report = thawkit.freeze(_vit(num_layers=12), policy, example=_images(2))
        assert report.saves_nothing
        assert report.saved_bytes_before == report.minimum_bytes
        # the head's input is computed again from that of the last normalization, of 17 tokens
        assert report.saved_bytes == report.minimum_bytes - 2 * 17 * 32 * 4
        assert "there is no exact saving for this recipe" in str(report)
        assert "act_bits=8, 4 or 2" in str(report)
    report = thawkit.freeze(_vit(), "all", example=_images(2))
    assert not report.saves_nothing
    assert "act_bits" not in str(report)
    head = thawkit.freeze(_vit(), "head", example=_images(2))
    assert "act_bits" not in str(head)  # only what the head's own gradient needs is saved


@pytest.mark.skipif(not onednn.available(), reason="torch's oneDNN operators do not run here")
def test_copies_of_frozen_weights_are_counted_and_dropped() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 64),
        nn.Linear(64, 2),
    )
    images = torch.randn(2, 3, 8, 8)
    report = thawkit.freeze(model, "bias", example=images)
    weights = 4 * (model[0].weight.numel() + model[4].weight.numel())
    assert report.packed_bytes >= weights
    assert "second copies of frozen weights, for speed: " in str(report)
    assert thawkit.frozen.packed_bytes(model) == 0  # made when first needed
    model(images)
    assert thawkit.frozen.packed_bytes(model) == report.packed_bytes
    model(images).sum().backward()
    assert report.packed_bytes < thawkit.frozen.packed_bytes(model) <= 2 * report.packed_bytes
    thawkit.unfreeze(model)
    assert thawkit.frozen.packed_bytes(model) == 0
    assert thawkit.freeze(model, "all", example=images).packed_bytes == 0


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # the switch itself says that
def test_where_nothing_is_laid_out_anew_the_report_says_so() -> None:
    onednn.available.cache_clear()
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            model = _vit()
            report = thawkit.freeze(model, "bias", example=_images(2))
            assert report.packed_bytes is None
            assert "oneDNN operators do not run here" in str(report)
            assert report.largest_batch(2**30) > 0
            assert thawkit.freeze(model, "all", example=_images(2)).packed_bytes == 0
    finally:
        onednn.available.cache_clear()


@pytest.mark.skipif(not onednn.available(), reason="torch's oneDNN operators do not run here")
def test_without_copies_nothing_is_kept_and_all_else_is_the_same(build) -> None:
    images = _images(2)
    gradients = []
    for copies in (True, False):
        model = build("resnet18")
        report = thawkit.freeze(model, {0: "head", 1: "bias"}, example=images, copies=copies)
        assert ("no second copies" in str(report)) is not copies
        thawkit.frozen.set_epoch(model, 1, example=images)
        copied = copy.deepcopy(model)  # which keeps none, either
        for net in (model, copied):
            net(images).square().sum().backward()
            assert (thawkit.frozen.packed_bytes(net) > 100_000) is copies
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        thawkit.unfreeze(model)
        thawkit.freeze(model, "bias", example=images)
        model(images)
        assert thawkit.frozen.packed_bytes(model) > 100_000
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_where_packed_products_are_no_faster_nothing_is_packed(monkeypatch) -> None:
    monkeypatch.setattr(onednn, "products_gain", lambda: False)
    model, images = _vit(), _images(2)
    report = thawkit.freeze(model, "bias", example=images)
    assert "torch's product is as fast on this CPU" in str(report)
    model(images).sum().backward()
    convolutions = thawkit.frozen.packed_bytes(model.conv_proj)
    assert report.packed_bytes == thawkit.frozen.packed_bytes(model) == convolutions
    assert "as fast" not in str(thawkit.freeze(model, "all", example=images))


def test_batch_normalizations_that_move_are_noted(build) -> None:
    images = torch.zeros(2, 3, 8, 8)
    (note,) = thawkit.freeze(build("small_cnn"), "all", example=images).notes
    assert note.startswith("2 batch normalizations go by the batch in training")
    assert note.endswith(": 1, 4")
    assert thawkit.freeze(build("small_cnn"), "norm", example=images).notes == ()


def test_statistics_that_the_model_itself_moves_are_named() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.norm, self.head = nn.InstanceNorm2d(4, track_running_stats=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, bn = self.conv(x), self.bn
            y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)
            return self.head(self.norm(y).mean((2, 3)))

    report = thawkit.freeze(Moves(), "head", example=torch.randn(2, 3, 8, 8))
    (note,) = [note for note in report.notes if "move in training" in note]
    assert "bn.running_mean" in note
    assert note.startswith("4 buffers")


def test_complex_parameters_that_are_meant_to_train_are_named() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.response, self.head = nn.Parameter(torch.randn(5, dtype=torch.cfloat)), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.response, 8))

    model = Filter()
    report = thawkit.freeze(model, "all", example=torch.randn(3, 8))
    assert report.notes == ("complex parameters stay frozen: response",)
    assert not model.response.requires_grad
    assert thawkit.freeze(model, "head", example=torch.randn(3, 8)).notes == ()


class _Initializing(nn.Module):
    """Scales by what its first batch says, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.done = nn.Parameter(torch.ones(3, 1, 1)), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.scale.data.copy_(1 / (x.std((0, 2, 3)).view(3, 1, 1) + 1e-6))
            self.done = True
        return self.scale * x


def test_a_model_that_writes_to_its_parameters_is_named(build) -> None:
    body = nn.Sequential(nn.Conv2d(3, 3, 3), _Initializing(), nn.Flatten(), nn.Linear(3 * 36, 2))
    with pytest.warns(ThawkitWarning, match=r"wrote to its own parameters when it was measured .*1\.scale"):
        report = thawkit.freeze(body, "head", example=torch.randn(2, 3, 8, 8))
    assert "1.scale" in str(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ThawkitWarning)
        thawkit.freeze(body, "bias", example=torch.randn(2, 3, 8, 8))  # it is done by now
        thawkit.freeze(build("small_cnn"), "channels:0.5", example=torch.randn(2, 3, 8, 8))
