from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

import thawkit
from thawkit.frozen.measure import saved_by_module

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
    assert report.saved_bytes == report.saved_bytes_before


def test_a_relu_whose_result_is_kept_anyway_makes_no_mask(build) -> None:
    model = build("small_cnn")
    report = thawkit.freeze(model, "0.weight+3.weight", example=torch.randn(2, 3, 8, 8))
    assert type(model[2]) is nn.ReLU
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
    assert report.example == "one blank 3x224x224 image"
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
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2))
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
