"""What is saved and what is needed: against figures measured elsewhere, by hand, and on functional calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen.measure import saved_by_module

MIB = 2**20


def _norms(model: nn.Module) -> set[str]:
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for own in ("weight", "bias")
    }


def _train(model: nn.Module, chosen: Callable[[str], bool]) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))
    return model


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    """On the meta device, where a forward costs nothing."""
    with torch.device("meta"):
        return torchvision.models.resnet50()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return torchvision.models.vit_b_16()


@pytest.mark.parametrize(
    ("recipe", "saved", "minimum"),
    [
        ("all", 650.9, 612),
        ("head", 0.1, 0.1),
        ("block", 12.3, 9.4),
        ("stage", 41.4, 38.5),
        ("norm", 650.9, 345),
        ("bias", 650.9, 10.0),
        ("stem", 650.9, 10.0),
    ],
)
def test_resnet50_needs_what_research_found(
    resnet50: nn.Module, recipe: str, saved: float, minimum: float
) -> None:
    norms = _norms(resnet50)
    chosen: dict[str, Callable[[str], bool]] = {
        "all": lambda name: True,
        "head": lambda name: False,
        "block": lambda name: name.startswith("layer4.2"),
        "stage": lambda name: name.startswith("layer4"),
        "norm": lambda name: name in norms,
        "bias": lambda name: name.endswith("bias"),
        "stem": lambda name: name.startswith("conv1"),
    }
    _train(resnet50.eval(), lambda name: name.startswith("fc") or chosen[recipe](name))
    report = thawkit.waste(resnet50, torch.zeros(8, 3, 224, 224, device="meta"))
    sizes = report.saved_bytes / MIB, report.minimum_bytes / MIB
    assert sizes == pytest.approx((saved, minimum), rel=0.01, abs=0.05)


def test_batch_statistics_need_the_input_where_a_gradient_passes(resnet50: nn.Module) -> None:
    """Of the first normalization only the shift trains, and nothing before it: it needs nothing."""
    _train(resnet50.train(), lambda name: name.endswith("bias") or name.startswith("fc"))
    report = thawkit.waste(resnet50, torch.zeros(8, 3, 224, 224, device="meta"))
    stem = 8 * 64 * 112 * 112 * 4 / MIB
    assert report.saved_bytes / MIB == pytest.approx(651.1, rel=0.001)
    assert report.minimum_bytes / MIB == pytest.approx(345.5 - stem + stem / 32, rel=0.002)


def test_nothing_is_changed(build) -> None:
    model = build("resnet18").train()
    mean, random = model.bn1.running_mean.clone(), torch.get_rng_state()
    images = torch.zeros(2, 3, 32, 32)
    report = thawkit.waste(model, images)
    assert report.saved_bytes == saved_by_module(model, images, set()).total()
    assert torch.equal(model.bn1.running_mean, mean)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


@pytest.mark.parametrize(
    ("recipe", "saved", "recompute"),
    [
        ("all", 896.9, 564.5),
        ("head", 4.6, 4.6),
        ("bias", 564.5, 564.5),
    ],
)
def test_vit_needs_all_but_what_can_be_computed_again(
    vit: nn.Module, recipe: str, saved: float, recompute: float
) -> None:
    chosen: dict[str, Callable[[str], bool]] = {
        "all": lambda name: True,
        "head": lambda name: False,
        "bias": lambda name: name.endswith("bias"),
    }
    _train(vit, lambda name: name.startswith("heads") or chosen[recipe](name))
    report = thawkit.waste(vit, torch.zeros(1, 3, 224, 224))
    sizes = report.saved_bytes, report.minimum_bytes, report.recompute_bytes
    assert [8 * size / MIB for size in sizes] == pytest.approx([saved, saved, recompute], rel=0.002, abs=0.05)
    assert report.wasted_bytes == 0


@pytest.mark.parametrize("policy", ["channels:0.5", "channels:0.5:out", "bias", "lora:4"])
def test_a_frozen_model_wastes_almost_nothing(build, policy: str) -> None:
    model = build("resnet18")
    images = torch.randn(2, 3, 64, 64)
    report = thawkit.freeze(model, policy, example=images)
    now = thawkit.waste(model.train(), images)
    assert now.saved_bytes == report.saved_bytes
    assert now.wasted_bytes <= 0.02 * now.saved_bytes


class _Functional(nn.Module):
    """Every operator is a functional call but one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3), requires_grad=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale  # saves x, which is the example
        x = F.relu6(F.conv2d(x, self.kernel, padding=1))  # 2 * 4 * 64 elements
        x = F.dropout(F.max_pool2d(x, 2), 0.5)  # a quarter of them
        x = F.hardsigmoid(F.conv2d(x, self.kernel, padding=1))
        return self.head(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1))


def test_functional_calls_by_hand() -> None:
    model = _Functional()
    report = thawkit.waste(model, torch.randn(2, 4, 8, 8))
    n, quarter, head = 2 * 4 * 64, 2 * 4 * 16, 2 * 4 * 4
    # x * scale; the inputs of relu6, pool; indices, noise; the inputs of convolution, hardsigmoid, avg_pool
    saved = 4 * n + 4 * n + 4 * n + 8 * quarter + 4 * quarter + 4 * quarter + 4 * quarter + 4 * quarter
    assert report.saved_bytes == saved + head
    # relu6's bits, codes of 2 bits, the noise's bits, the hardsigmoid's
    assert report.minimum_bytes == n // 8 + quarter // 4 + quarter // 8 + quarter // 8 + head
    rows = {row.module: row for row in report.rows}
    assert rows[""].kind == "_Functional"
    assert rows[""].saved_bytes == saved
    assert rows["head"].wasted_bytes == 0
    assert {op for holders in report.holders for op in holders.operators} >= {
        "Hardtanh",
        "Convolution",
        "AvgPool2D",
    }
    assert sum(row.saved_bytes for row in report.rows) == report.saved_bytes
    assert sum(holders.minimum_bytes for holders in report.holders) == report.minimum_bytes


_CONSTANTS = {
    "one": torch.ones(1),
    "zeros": torch.zeros(3),
    "ones": torch.ones(3),
    "filters": torch.ones(2, 3, 3, 3),
    "transposed": torch.ones(3, 2, 3, 3),
    "matrix": torch.ones(2, 8),
}


@pytest.mark.parametrize(
    ("function", "bits", "indices"),
    [
        (F.relu, 1, 0),
        (lambda x: F.leaky_relu(x, 0.1), 1, 0),
        (F.hardtanh, 1, 0),
        (F.hardsigmoid, 1, 0),
        (lambda x: x.clamp(min=0), 1, 0),
        (lambda x: x.clamp(0, 1), 1, 0),
        (lambda x: F.threshold(x, 0.0, 0.0), 1, 0),
        (lambda x: F.prelu(x, _CONSTANTS["one"]), 1, 0),
        (torch.abs, 2, 0),
        (lambda x: F.dropout(x, 0.5), 1, 0),
        (lambda x: x.masked_fill(x > 0, 0.0), 1, 0),
        (F.gelu, 32, 0),
        (F.silu, 32, 0),
        (F.hardswish, 32, 0),
        (lambda x: F.avg_pool2d(x, 2), 0, 0),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 0, 0),
        (lambda x: F.max_pool2d(x, 2), 0, 2),
        (lambda x: F.max_pool2d(x, 3, 2, 1), 0, 4),
        (lambda x: F.max_pool2d(x, 5, 2, 2), 0, 8),
        (lambda x: F.adaptive_max_pool2d(x, 4), 0, 4),
        (lambda x: F.batch_norm(x, _CONSTANTS["zeros"], _CONSTANTS["ones"]), 0, 0),
        (lambda x: F.conv2d(x, _CONSTANTS["filters"]), 0, 0),
        (lambda x: F.conv_transpose2d(x, _CONSTANTS["transposed"]), 0, 0),
        (lambda x: F.linear(x, _CONSTANTS["matrix"]), 0, 0),
    ],
)
def test_operators(function: Callable[[Tensor], Tensor], bits: int, indices: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(1))
            for name, constant in _CONSTANTS.items():  # a model's buffers do not count
                self.register_buffer(name, constant)

        def forward(self, x: Tensor) -> Tensor:
            return function(x + self.shift)

    x = torch.randn(2, 3, 8, 8)
    chosen = function(x).numel() if indices else 0
    need = math.ceil(bits * x.numel() / 8) + indices * chosen // 8
    assert thawkit.waste(Model(), x).minimum_bytes == need


def test_a_mask_is_free_where_its_result_or_its_normalized_input_is_kept() -> None:
    def model(*train: str) -> nn.Module:
        layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval()
        return _train(layers, lambda name: name in train)

    x, size = torch.randn(2, 3, 4, 4), 2 * 4 * 16 * 4
    assert thawkit.waste(model("0.bias"), x).minimum_bytes == size // 32
    assert thawkit.waste(model("0.bias", "3.weight"), x).minimum_bytes == size  # the result
    assert thawkit.waste(model("1.weight"), x).minimum_bytes == size  # the normalization's input
    both = thawkit.waste(model("1.weight", "3.weight"), x)
    assert (both.minimum_bytes, both.recompute_bytes) == (2 * size, size)


def test_casts_of_frozen_weights_are_waste() -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    model = _train(layers, lambda name: name == "0.bias")

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x)

    report = thawkit.waste(Cast(), torch.randn(3, 4))
    gelu = 3 * 8 * 2
    assert report.saved_bytes == gelu + 8 * 4 * 2
    assert report.minimum_bytes == gelu


def test_without_computing() -> None:
    """On the meta device and with fake tensors what is needed is that of a real run."""

    def make(device: str) -> tuple[nn.Module, Tensor]:
        with torch.device(device):
            model = torchvision.models.mobilenet_v3_small(num_classes=5).eval()
            images = torch.zeros(2, 3, 64, 64)
        return _train(model, lambda name: name.endswith("bias")), images

    real = thawkit.waste(*make("cpu"))
    assert real.wasted_bytes > 0
    without = [thawkit.waste(*make("meta"))]
    with FakeTensorMode():
        without.append(thawkit.waste(*make("cpu")))
    for report in without:
        assert report.minimum_bytes == real.minimum_bytes
        # The CPU leaves out the statistics of a normalization that has them.
        assert report.saved_bytes == pytest.approx(real.saved_bytes, rel=0.03)


def test_whatever_a_model_takes_and_gives() -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    bert = transformers.BertForSequenceClassification(config)
    report = thawkit.waste(bert, {"input_ids": torch.arange(8).view(2, 4)})
    assert 0 < report.minimum_bytes < report.saved_bytes  # the noise of dropout
    assert any("dropout" in row.module.lower() and row.wasted_bytes > 0 for row in report.rows)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    assert thawkit.waste(Checkpointed(), torch.randn(3, 4)).saved_bytes == 0
    assert thawkit.waste(torch.compile(nn.Linear(4, 2)), torch.randn(3, 4)).saved_bytes == 0  # the example


def test_bad_input() -> None:
    with pytest.raises(ThawkitError, match=r"model: expected a torch\.nn\.Module, got str"):
        thawkit.waste("resnet50", torch.zeros(1))  # type: ignore[arg-type]

    for example in (torch.zeros(3, 5), "images", None):
        with pytest.raises(ThawkitError, match=r"example: the model fails on it: \w+Error: .") as raised:
            thawkit.waste(nn.Linear(4, 2), example)  # type: ignore[arg-type]
        assert raised.value.__cause__ is not None

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "done"

    with pytest.raises(ThawkitError, match="expected a tensor in its output"):
        thawkit.waste(Silent(), torch.zeros(1))


def test_table(resnet50: nn.Module) -> None:
    _train(resnet50.eval(), lambda name: name.endswith("bias"))
    lines = str(thawkit.waste(resnet50, torch.zeros(8, 3, 224, 224, device="meta"))).splitlines()
    assert lines[0].startswith("thawkit.waste: 651.0 MiB saved for backward, 9.9 MiB needed")
    assert lines[2].split() == ["held", "by", "tensors", "saved", "needed", "recompute", "wasted"]
    assert lines[3].startswith("NativeBatchNorm ")
    assert any(line.startswith("Relu + Convolution ") for line in lines)
    assert lines[-1].endswith(" more modules")
