"""Lossy saving: bytes, how near the gradients come, and that nothing else changes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen.lossy_layers import Lossy
from thawkit.frozen.measure import saved_by_module
from thawkit.select.create import create_model

SMOOTH: list[nn.Module] = [
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Hardswish(),
    nn.Hardswish(inplace=True),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ELU(0.7),
    nn.ELU(inplace=True),
    nn.Softplus(2.0, 3.0),
]
DIGITS = {8: 0.01, 4: 0.1, 2: 0.7}  # bounds on the relative error of a gradient


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, **options)


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _both(stock: nn.Module, x: Tensor, act_bits: int, policy: Any = "all") -> list[dict[str, Tensor]]:
    """Values and gradients of the lossy and the exact model, of a loss that is not linear."""
    results = []
    for bits in (act_bits, None):
        model = copy.deepcopy(stock)
        thawkit.freeze(model, policy, act_bits=bits)
        model.train()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        (y.float().sin() * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append({"y": y.detach(), "x": leaf.grad, **found, **dict(model.named_buffers())})
    return results


@pytest.mark.parametrize("act_bits", [8, 4, 2])
@pytest.mark.parametrize("activation", SMOOTH, ids=repr)
def test_activations(activation: nn.Module, act_bits: int) -> None:
    model = nn.Sequential(nn.Linear(64, 64), copy.deepcopy(activation)).requires_grad_(False)
    model.add_module("shift", nn.Linear(64, 3))
    x = torch.randn(50, 64) * 2
    lossy, exact = _both(model, x, act_bits, "shift.bias")
    assert torch.equal(lossy["y"], exact["y"])
    assert _far(lossy["x"], exact["x"]) < DIGITS[act_bits]
    thawkit.freeze(model, "shift.bias", act_bits=act_bits)
    saved = saved_by_module(model, x.requires_grad_(), set())
    assert saved["1"] == 50 * 64 * act_bits // 8 + math.ceil(50 * 64 / (256 if act_bits == 2 else 64)) * (
        16 if act_bits == 2 else 8
    )


def _layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    first = nn.Identity()
    return {
        "linear": (nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 4)), (20, 8)),
        "conv1d": (nn.Sequential(nn.Conv1d(3, 6, 1), nn.Conv1d(6, 4, 3, 2, 1)), (5, 3, 30)),
        "conv2d": (nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, 2, "valid", groups=2)), (2, 3, 9, 8)),
        "reflect": (
            nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
            (2, 3, 9, 8),
        ),
        "conv3d": (nn.Sequential(nn.Conv3d(3, 6, 1), nn.Conv3d(6, 4, 3, dilation=2)), (2, 3, 7, 8, 9)),
        "layer_norm": (nn.Sequential(first, nn.LayerNorm(40)), (3, 5, 40)),
        "layer_norm of two": (
            nn.Sequential(nn.Linear(40, 40), nn.LayerNorm((5, 40), elementwise_affine=False)),
            (3, 5, 40),
        ),
        "layer_norm, linear": (nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 3)), (3, 5, 40)),
        "batch_norm1d": (nn.Sequential(nn.BatchNorm1d(6)), (50, 6)),
        "batch_norm2d": (
            nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            (4, 3, 6, 7),
        ),
        "batch_norm3d": (nn.Sequential(nn.BatchNorm3d(6, momentum=None)), (2, 6, 3, 4, 5)),
        "no statistics": (nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False)), (2, 6, 4, 5)),
    }


@pytest.mark.parametrize("act_bits", [8, 4])
@pytest.mark.parametrize("name", list(_layers()))
def test_layers_that_train(name: str, act_bits: int) -> None:
    model, shape = _layers()[name]
    for p in model.parameters():
        nn.init.normal_(p, 0.3)
    for dtype in (torch.float32, torch.float64):
        lossy, exact = _both(model.to(dtype), torch.randn(shape, dtype=dtype) + 1, act_bits)
        assert any("Lossy" in type(m).__name__ for m in _frozen(model, act_bits).modules())
        for key, gradient in exact.items():
            if gradient is not None:
                bound = 1e-5 if key == "y" or "running" in key else 0.03  # inputs have 8 bits either way
                assert _far(lossy[key].double(), gradient.double()) < bound, key


def _frozen(stock: nn.Module, act_bits: int, policy: str = "all") -> nn.Module:
    model = copy.deepcopy(stock)
    thawkit.freeze(model, policy, act_bits=act_bits)
    return model


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "lite0"])
@pytest.mark.parametrize("policy", ["norm", "last:1", "bias"])
def test_fixed_statistics(build: Callable[[str], nn.Module], name: str, policy: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    lossy, exact = _both(build(name), images, 8, policy)
    assert lossy.keys() == exact.keys()
    assert torch.equal(lossy["y"], exact["y"]) or _far(lossy["y"], exact["y"]) < 1e-5
    trains = [key for key in exact if key != "y" and "running" not in key and "tracked" not in key]
    for key in trains:
        assert _far(lossy[key], exact[key]) < 0.05, key


def test_channels_last() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    lossy, exact = _both(model.to(memory_format=torch.channels_last), x, 8)
    for key, gradient in exact.items():
        assert _far(lossy[key].double(), gradient.double()) < 0.02, key


@pytest.mark.parametrize(("act_bits", "least"), [(8, 0.9999), (4, 0.999), (2, 0.98)])
@pytest.mark.parametrize("policy", ["all", "bias", "last:4"])
def test_gradient_of_a_vision_transformer(policy: str, act_bits: int, least: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if act_bits == 2 else "error", ThawkitWarning)
        report = thawkit.freeze(_vit(), policy, example=torch.randn(4, 3, 64, 64), act_bits=act_bits)
    assert report.fidelity is not None
    assert report.fidelity.cosine is not None
    assert report.fidelity.cosine > least


@pytest.mark.parametrize(("act_bits", "least"), [(8, 0.9999), (4, 0.999)])
@pytest.mark.parametrize("policy", ["all", "last:4"])
def test_gradient_of_a_pretrained_lite0(policy: str, act_bits: int, least: float) -> None:
    model = create_model("efficientnet_lite0", 5, image_size=64, seed=0).module
    report = thawkit.freeze(model, policy, example=torch.randn(4, 3, 64, 64), act_bits=act_bits)
    assert report.fidelity is not None
    assert report.fidelity.cosine is not None
    assert report.fidelity.cosine > least
    assert report.saved_bytes is not None
    assert report.saved_bytes_before is not None
    assert report.saved_bytes < 0.4 * report.saved_bytes_before


def test_bytes_of_a_vision_transformer() -> None:
    """Derivatives of GELU and normalized inputs, at their bits."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5, dropout=0.0)
    example = torch.randn(2, 3, 32, 32)
    exact = thawkit.freeze(model, "bias", example=example).saved_bytes
    tokens, dim, hidden, layers = 2 * 17, 32, 64, 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThawkitWarning)
        lossy = thawkit.freeze(model, "bias", example=example, act_bits=4).saved_bytes
    assert exact is not None
    normalized = 2 * layers + 1

    def cost(elements: int, bits: int) -> int:
        return elements * bits // 8 + math.ceil(elements / 64) * 8

    before = layers * tokens * hidden * 4 + normalized * tokens * (dim * 4 + 8)
    after = layers * cost(tokens * hidden, 4) + normalized * (cost(tokens * dim, 8) + tokens * 4)
    assert lossy == exact - before + after


def test_the_report() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3))
    text = str(thawkit.freeze(model, "all", act_bits=4))
    assert "lossy: act_bits=4 rounds derivatives of activations to 4 bits" in text
    assert "not measured" in text
    report = thawkit.freeze(model, "all", example=torch.randn(9, 8), act_bits=4)
    assert report.fidelity is not None
    assert {name for name, _ in report.fidelity.layers} == {"0", "2"}
    cosines = [cosine for _, cosine in report.fidelity.layers]
    assert cosines == sorted(cosines)
    assert f"cosine {report.fidelity.cosine:.4f}"[:11] in str(report)
    assert "largest deviations: " in str(report)
    assert "lossy" not in str(thawkit.freeze(model, "all", example=torch.randn(9, 8)))
    assert not any(isinstance(module, Lossy) for module in model.modules())


def test_a_warning_below_0_99() -> None:
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.Tanh())))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    with pytest.warns(ThawkitWarning, match="below 0.99: this lossy setting may train worse"):
        thawkit.freeze(model, "all", example=torch.randn(9, 32), act_bits=2)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3)).eval()
    example, before, state = torch.randn(2, 3, 8, 8), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    thawkit.freeze(model, "all", example=example, act_bits=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("act_bits", [1, 16, 8.0, "4", True])
def test_act_bits_that_are_none(act_bits: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ThawkitError, match="act_bits must be 8, 4 or 2, got"):
        thawkit.freeze(model, "all", act_bits=act_bits)
    assert type(model[0]) is nn.Linear


def test_unfreeze_leaves_nothing_and_epochs_keep_the_bits() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    thawkit.freeze(model, {0: "head", 1: "all"}, act_bits=4)
    report = thawkit.frozen.set_epoch(model, 1)
    assert report is not None
    assert report.fidelity is not None
    assert isinstance(model[1], Lossy)
    thawkit.unfreeze(model)
    assert [type(m) for m in model] == [nn.Linear, nn.GELU, nn.LayerNorm, nn.Linear]
    assert not any("thawkit" in key for module in model.modules() for key in vars(module))


def test_what_needs_a_gradient_is_read_at_each_forward() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    thawkit.freeze(model, "all", act_bits=8)
    x = torch.randn(50, 8)
    model[2].weight.requires_grad_(False)
    assert saved_by_module(model, x, set()).total() == 50  # one bit an element of the ReLU
    model[2].weight.requires_grad_(True)
    assert saved_by_module(model, x, set()).total() == 50 + 400 + 7 * 8


def _small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 3)
    )


def test_second_derivatives_are_refused() -> None:
    for layers in (slice(0, 6), slice(0, 2), slice(1, 3), slice(3, 6)):
        model = _small()[layers]
        thawkit.freeze(model, "all", act_bits=8)
        x = torch.randn(4, 16 if layers.start else 8, requires_grad=True)
        with pytest.raises(
            ThawkitError, match="act_bits: a gradient from rounded activations has no derivative"
        ):
            torch.autograd.grad(model(x).square().sum(), x, create_graph=True)


def test_checkpointing_gives_the_same_gradients() -> None:
    model = _small()
    thawkit.freeze(model, "all", act_bits=4)
    x = torch.randn(10, 8)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(x).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    gradients = []
    for bits in (8, None):
        model = _small()
        thawkit.freeze(model, "all", act_bits=bits)
        with torch.autocast("cpu", dtype):
            y = model(torch.randn(64, 8, generator=torch.manual_seed(1)))
        assert y.dtype == dtype
        y.float().square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32
        assert _far(a, b) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    lossy, exact = _both(_small().to(dtype), torch.randn(64, 8).to(dtype), 8)
    for key, gradient in exact.items():
        assert lossy[key].dtype == dtype
        assert _far(lossy[key].float(), gradient.float()) < 0.05, key


def test_no_grad_trace_compile_and_script_run_the_stock_forward() -> None:
    stock = _small().eval()
    model = _frozen(stock, 4)
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(model(x), stock(x))
    assert torch.equal(torch.jit.trace(model, x)(x), stock(x))
    assert torch.equal(torch.jit.script(model)(x), stock(x))
    assert torch.equal(torch.export.export(model, (x,)).module()(x), stock(x))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x).square().sum().backward()
    stock(x).square().sum().backward()
    for a, b in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_copies_and_pickles_stay_lossy() -> None:
    model = _frozen(_small(), 4)
    stream = io.BytesIO(pickle.dumps(model))
    x = torch.randn(5, 8)
    expected = saved_by_module(model, x, set())
    for other in (copy.deepcopy(model), pickle.load(stream)):
        assert saved_by_module(other, x, set()) == expected
    assert model.state_dict().keys() == _small().state_dict().keys()


def test_layers_of_one_input_share_its_rounding() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 64)
            self.parts = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.parts[0](x) + self.parts[1](x) + self.parts[2](x)

    model = Three()
    thawkit.freeze(model, "all", act_bits=8)
    assert saved_by_module(model, torch.randn(10, 8), set()).total() == 10 * (64 + 8)


def test_training_on_digits_reaches_the_loss_of_exact_training() -> None:
    """300 steps: the loss ends within 1 % of the exact run's at 8 and at 4 bits."""
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    losses = {}
    for bits in (None, 8, 4):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10)
        )
        thawkit.freeze(model, "all", act_bits=bits)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(300):
            rows = torch.arange(step * 64, step * 64 + 64) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            losses[bits] = float(F.cross_entropy(model(x), y))
    assert losses[None] < 0.08
    assert abs(losses[8] - losses[None]) < 0.01 * losses[None]
    assert abs(losses[4] - losses[None]) < 0.01 * losses[None]


def test_the_report_says_what_rounding_buys() -> None:
    """On convolutions that all train 8 bits and 4 save the same, since inputs take 8 bits with both."""
    torch.manual_seed(0)
    stock, example = torchvision.models.resnet18(num_classes=3), torch.randn(2, 3, 64, 64)
    exact = thawkit.freeze(copy.deepcopy(stock), "all", example=example)
    assert exact.exact_bytes is None
    reports = [thawkit.freeze(copy.deepcopy(stock), "all", example=example, act_bits=bits) for bits in (8, 4)]
    assert reports[0].saved_bytes == reports[1].saved_bytes
    for report in reports:
        assert report.exact_bytes == pytest.approx(exact.saved_bytes, rel=0.02)
        assert "rounding leaves " in str(report)
        assert "inputs of weights and normalizations to 8" in str(report)
