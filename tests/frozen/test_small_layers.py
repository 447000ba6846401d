"""Pools, dropout and the activations beside ReLU in their rewritten classes, against the stock ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

import thawkit
from thawkit import ops
from thawkit.frozen import activation_layers, pool_layers
from thawkit.frozen.layers import PackedReLU, Rewritten
from thawkit.frozen.measure import saved_by_module

CLASSES = activation_layers.CLASSES | pool_layers.CLASSES

# layer, the shape it takes, and the saved bytes of 2 * 4 * 8 * 8 (* 8) or 2 * 4 * 64 elements in float32
LAYERS: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (nn.MaxPool1d(2), (2, 4, 64), 8 * 32 // 4),
    (nn.MaxPool2d(3, 2, 1), (2, 4, 8, 8), 8 * 16 // 2),
    (nn.MaxPool2d((2, 3), ceil_mode=True), (2, 4, 8, 8), 8 * 12 // 2),
    (nn.MaxPool3d(2), (2, 4, 8, 8, 8), 8 * 64 // 2),
    (nn.AvgPool1d(3, 2, 1), (2, 4, 64), 0),
    (nn.AvgPool2d(2, count_include_pad=False), (2, 4, 8, 8), 0),
    (nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 4, 64), 0),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 4, 8, 8), 0),
    (nn.AvgPool2d(3, 2, 1, divisor_override=4), (2, 4, 8, 8), 0),
    (nn.AvgPool3d(2, divisor_override=3), (2, 4, 8, 8, 8), 0),
    (nn.AdaptiveAvgPool1d(5), (2, 4, 64), 0),
    (nn.AdaptiveAvgPool2d((3, 4)), (2, 4, 8, 8), 0),
    (nn.AdaptiveAvgPool3d(2), (2, 4, 8, 8, 8), 0),
    (nn.LeakyReLU(0.2), (2, 4, 8, 8), 64),
    (nn.LeakyReLU(inplace=True), (2, 4, 8, 8), 64),
    (nn.RReLU().eval(), (2, 4, 8, 8), 64),
    (nn.Threshold(0.1, -2.0), (2, 4, 8, 8), 64),
    (nn.Hardsigmoid(), (2, 4, 8, 8), 64),
    (nn.Hardsigmoid(inplace=True), (2, 4, 8, 8), 64),
    (nn.PReLU().requires_grad_(False), (2, 4, 8, 8), 64),
    (nn.PReLU(4).requires_grad_(False), (2, 4, 8, 8), 64),
    (nn.Dropout(0.3), (2, 4, 8, 8), 64),
    (nn.Dropout(inplace=True), (2, 4, 8, 8), 64),
]


def _rewrite(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    module.__class__ = CLASSES[type(module)]
    return module


def _run(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    y = module(x * 1)
    return [y, *torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).to(y.dtype).view(y.shape))]


def _assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()


@pytest.mark.parametrize(("stock", "shape", "size"), LAYERS, ids=str)
def test_equals_the_stock_layer_and_saves_less(stock: nn.Module, shape: tuple[int, ...], size: int) -> None:
    ours = _rewrite(stock)
    assert set(ours.state_dict()) == set(stock.state_dict())
    x = torch.randn(shape)
    halves = () if isinstance(stock, nn.AvgPool3d) else (torch.bfloat16,)  # torch has none on the CPU
    for dtype in (torch.float32, *halves, torch.float64):
        _assert_same(_run(ours.to(dtype), x.to(dtype)), _run(stock.to(dtype), x.to(dtype)))
    evaluating = copy.deepcopy(stock).float().eval()
    _assert_same(_run(_rewrite(evaluating), x), _run(evaluating, x))
    ours = _rewrite(stock.float())
    layers = nn.Sequential(nn.Identity(), ours)
    held = set() if stock.training else {ours}
    assert saved_by_module(layers, x.requires_grad_() * 1, held)["1"] == size


@pytest.mark.parametrize(("stock", "shape", "size"), LAYERS, ids=str)
def test_scripts_and_compiles(stock: nn.Module, shape: tuple[int, ...], size: int) -> None:
    stock = copy.deepcopy(stock).eval()
    ours, x = _rewrite(stock), torch.randn(shape)
    expected = stock(x.clone())
    assert torch.equal(torch.jit.script(ours)(x.clone()), expected)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x.clone().requires_grad_() * 1), expected)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(ours))(x.clone()), expected)


def test_what_gains_nothing_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2, return_indices=True),
        nn.AdaptiveMaxPool2d(4),
        nn.AdaptiveAvgPool2d(1),
    )
    thawkit.freeze(model, "0.bias")
    assert [isinstance(module, Rewritten) for module in model] == [True, True, False, False, False]
    assert model[1].kept  # which is as good as stock


def test_freezing_rewrites_what_gains_and_unfreezing_restores() -> None:
    layers = [copy.deepcopy(layer) for layer, shape, _ in LAYERS if len(shape) == 4 or len(shape) == 3]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *layers, nn.Linear(3, 3))
    kinds = [type(module) for module in model]
    thawkit.freeze(model, "0.bias", example=None)
    assert all(isinstance(module, Rewritten) for module in model[:-1])
    thawkit.unfreeze(model)
    assert [type(module) for module in model] == kinds


def test_an_activation_before_a_pool_that_saves_codes_saves_bits() -> None:
    """With the stock pool, which saves its input, the stock activation costs nothing."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(2, 3, 8, 8)
    report = thawkit.freeze(model, "0.bias+head", example=x)
    assert isinstance(model[1], PackedReLU)
    assert report.saved_bytes == 2 * 4 * 36 // 8 + 2 * 4 * 3 + 2 * 36 * 4  # bits, codes, the head's input


def test_reference_backend_takes_the_stock_layers() -> None:
    for stock, shape, _ in LAYERS:
        if isinstance(stock, tuple(activation_layers.CLASSES)) and not getattr(stock, "inplace", False):
            with ops.use_backend("reference"):
                y = _rewrite(stock)(torch.randn(shape, requires_grad=True))
            assert "Packed" not in type(y.grad_fn).__name__
            assert "thawkit" not in type(y.grad_fn).__module__


def test_a_trainable_prelu_and_a_random_rrelu_are_torchs_own() -> None:
    x = torch.randn(2, 4, 8, 8)
    for stock in (nn.PReLU(4), nn.RReLU()):
        _assert_same(_run(_rewrite(stock), x), _run(stock, x))


@pytest.mark.parametrize(
    ("name", "ratio"), [("squeezenet1_1", 20), ("vgg11_bn", 40), ("mobilenet_v3_small", 3)]
)
def test_networks_of_these_layers(name: str, ratio: float, stock, gradients) -> None:
    """Ceil-mode pools, dropout, adaptive pools to 7, hardsigmoids. What is left: Hardswish and the head."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    report = thawkit.freeze(model, "bias", example=x)
    assert report.saved_bytes_before > ratio * report.saved_bytes
    ours, theirs = gradients(model, x), gradients(stock(model), x)
    for key, value in theirs.items():
        assert (ours[key] - value).norm() <= 1e-5 * value.norm() + 1e-12, key
