"""Tensors that stand for a result not yet computed: every way to touch one gives what stock modules give."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import Deferred, at_once
from thawkit.ops.frozen import onednn


class Foreign(torch.autograd.Function):
    """A Function of someone else's, which gets the stand-in itself."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 3


def _relu_in_place_dropped(x: Tensor) -> Tensor:
    F.relu_(x)
    return x


def _added_in_place_dropped(x: Tensor) -> Tensor:
    x.add_(1.5)
    x += x.detach().cos()
    return x


def _multiplied_in_place_dropped(x: Tensor) -> Tensor:
    x.mul_(1.5)
    return x


TOUCHES = {
    "as it is": lambda x: x,
    "relu": F.relu,
    "relu in place": F.relu_,
    "relu in place, result dropped": _relu_in_place_dropped,
    "sum in place": _added_in_place_dropped,
    "sum with itself": lambda x: x + x,
    "sum of other shape": lambda x: x + torch.ones(1, 4, 1, 1, dtype=x.dtype),
    "sum, weighted": lambda x: torch.add(x, x.detach().sin(), alpha=0.5),
    "sum from the left": lambda x: torch.ones(2, 4, 6, 6, dtype=x.dtype) + x,
    "Function": Foreign.apply,
    "Function after relu in place": lambda x: Foreign.apply(_relu_in_place_dropped(x)),
    "Function after a sum in place": lambda x: Foreign.apply(_added_in_place_dropped(x)),
    "Function after a product in place": lambda x: Foreign.apply(_multiplied_in_place_dropped(x)),
    "twice": lambda x: x.sin() * x,
    "concatenated": lambda x: torch.cat([x, x], 1),
    "indexed": lambda x: x[:, 1:, ::2],
    "in a list": lambda x: torch.stack([x, x.clone()]),
}


class Block(nn.Module):
    def __init__(self, touch) -> None:
        super().__init__()
        self.conv, self.bn, self.touch = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), touch
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.touch(self.bn(self.conv(x)))
        return y.flatten(1).sin().sum(1, keepdim=True) + self.head.bias


def _pair(touch, train: str = "bn.bias") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    stock = Block(touch).double()
    nn.init.uniform_(stock.bn.running_var, 0.5, 1.5)
    nn.init.normal_(stock.bn.running_mean)
    nn.init.normal_(stock.bn.bias)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, train)
    stock.bn.eval()
    for ours, theirs in zip(frozen.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return frozen, stock


def test_a_sum_with_another_dtype_has_the_wider_one() -> None:
    frozen, stock = _pair(lambda x: x + torch.full((2, 4, 6, 6), 1e-9, dtype=torch.float64))
    x = torch.linspace(-1, 1, 216).view(2, 3, 6, 6)
    ours, theirs = frozen.float()(x), stock.float()(x)
    assert ours.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("leaf", [True, False])
def test_values_and_gradients_whatever_touches_it(touch, leaf: bool) -> None:
    results = []
    for net in _pair(touch):
        x = torch.linspace(-1, 1, 216, dtype=torch.float64).view(2, 3, 6, 6).requires_grad_(leaf)
        y = net(x)
        y.sum().backward()
        results.append((y.detach(), net.bn.bias.grad, *([x.grad] if leaf else [])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_without_gradients(touch, mode) -> None:
    frozen, stock = _pair(touch)
    with mode():
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(frozen(x), stock(x), rtol=1e-12, atol=1e-13)


MODES = {"gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


class Elsewhere(nn.Module):
    """A normalized convolution that is made in one mode and touched in another."""

    def __init__(self, made, touch, touched) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.gain, self.offset = (nn.Parameter(torch.ones(4, 6, 6)) for _ in range(2))
        self.made, self.touch, self.touched = made, touch, touched

    def forward(self, x: Tensor) -> Tensor:
        with self.made():
            y = self.bn(self.conv(x))
        with self.touched():
            z = self.touch(y)
        return self.gain * y.clone() + (z.clone().mean() + 1) * self.offset


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("touched", MODES)
@pytest.mark.parametrize("made", MODES)
@pytest.mark.parametrize("part", ["bn.bias", "bn.weight"])  # folded, and a normalization that waits
def test_the_modes_of_the_layer_count_and_not_those_of_who_touches_it(
    part: str, made: str, touched: str, touch
) -> None:
    torch.manual_seed(0)
    stock = Elsewhere(MODES[made], touch, MODES[touched])
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, f"{part}+gain+offset")
    stock.bn.eval()
    for ours, theirs in zip(frozen.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    results = []
    for net in (stock, frozen):
        x = torch.linspace(-1, 1, 216).view(2, 3, 6, 6).requires_grad_()
        try:
            y = net(x)
            wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
            gradients = torch.autograd.grad(y.square().mean(), wanted, allow_unused=True)
            results.append((y, *gradients))
        except RuntimeError as error:  # as where an inference tensor is written to, or saved
            results.append(str(error)[:40])
    theirs, ours = results
    assert isinstance(ours, str) is isinstance(theirs, str), (theirs, ours)
    if not isinstance(ours, str):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) is (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_layer_called_outside_autocast_computes_in_full_precision() -> None:
    frozen, stock = (net.float() for net in _pair(F.relu))
    x = torch.randn(2, 3, 6, 6)
    values = []
    for net in (frozen, stock):
        y = net.bn(net.conv(x))
        with torch.autocast("cpu", torch.bfloat16):
            values.append(F.relu(y))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert values[0].dtype == torch.float32


def test_hooks_that_look_without_gradients_take_none_away() -> None:
    frozen, stock = _pair(F.relu)
    for net in (frozen, stock):
        for module in (net.conv, net.bn):
            module.register_forward_hook(lambda module, args, y: torch.no_grad()(torch.mean)(y) and None)
        net(torch.ones(2, 3, 6, 6, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(frozen.bn.bias.grad, stock.bn.bias.grad)


def test_hooks_see_values() -> None:
    seen = []
    for net in _pair(F.relu):
        for module in (net.conv, net.bn):
            module.register_forward_hook(lambda module, args, y: seen.append(y.detach().mean().item()))
        net(torch.ones(2, 3, 6, 6, dtype=torch.float64))
    assert seen[:2] == pytest.approx(seen[2:], rel=1e-12)


def test_metadata_computes_nothing() -> None:
    frozen, _ = _pair(F.relu)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    y = frozen.conv(x)
    assert isinstance(y, Deferred)
    assert (y.shape, y.dtype, y.dim(), y.size(1), len(y)) == ((2, 4, 6, 6), torch.float64, 4, 4, 2)
    assert y.requires_grad is False
    assert y.known is None
    assert y.sum().item() == pytest.approx(F.conv2d(x, frozen.conv.weight, padding=1).sum().item())
    assert y.known is not None


def test_an_input_written_to_in_between_is_an_error_and_not_a_wrong_result() -> None:
    frozen, _ = _pair(F.relu)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    y = frozen.conv(x)
    x.mul_(2)
    with pytest.raises(ThawkitError, match="input of a frozen Conv2d was written to"):
        frozen.bn(y).sum()


class Overwriting(nn.Module):
    """Writes to what its layers were given, where that is no part of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.bn(x)
        convolved = self.conv(x)
        x += 1
        return self.head((self.act(y) + self.act(self.bn(convolved)) + x).mean((2, 3)))


def test_layers_whose_input_the_example_overwrites_do_not_wait() -> None:
    torch.manual_seed(0)
    frozen = Overwriting()
    stock = copy.deepcopy(frozen)
    x = torch.randn(2, 3, 6, 6)
    thawkit.freeze(frozen, "head", example=x)
    stock.bn.eval()
    torch.testing.assert_close(frozen(x), stock(x))
    assert not frozen.conv.folds
    assert not frozen.bn.folds
    frozen(x).sum().backward()
    assert frozen.head.weight.grad is not None
    thawkit.unfreeze(frozen)
    assert "folds" not in {*vars(frozen.conv), *vars(frozen.bn)}


@pytest.mark.parametrize("write", ["copy_", "data", "mean", "variance", "scale", "load_state_dict"])
def test_a_folded_weight_follows_what_it_was_made_of(write: str) -> None:
    frozen, stock = _pair(F.relu)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = frozen(x).detach()
    for net in (frozen, stock):
        torch.manual_seed(3)
        if write == "copy_":
            with torch.no_grad():
                net.conv.weight.copy_(torch.randn_like(net.conv.weight))
        elif write == "data":
            net.conv.weight.data.mul_(1.25)
        elif write == "mean":
            net.bn.running_mean += 0.5
        elif write == "variance":
            net.bn.running_var += 0.5
        elif write == "scale":
            net.bn.weight.data += 0.5
        else:
            net.load_state_dict({key: value + 0.25 for key, value in net.state_dict().items()})
    assert not torch.allclose(frozen(x), before)
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-12, atol=1e-13)


def test_not_a_number_is_passed_on_by_the_clamp() -> None:
    frozen, _ = _pair(nn.ReLU())
    frozen.float()
    x = torch.randn(2, 3, 6, 6)
    x[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        assert frozen(x)[0].isnan().all()
    assert frozen(x)[0].isnan().all()
    assert frozen(x)[1].isfinite().all()


class Residual(nn.Module):
    """Clamps after a convolution, a sum, and a convolution with TensorFlow's padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))
        self.same = nn.Sequential(Conv2dSame(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(5 * x)
        x = self.same(F.relu6(F.relu(self.two(x) + x) + 1))
        return self.head(x.mean((2, 3)))


def _operators(model: nn.Module, x: Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.no_grad():
        model(x)
    return {event.key for event in seen.key_averages()}


@pytest.mark.skipif(not onednn.available(), reason="torch's oneDNN operators do not run here")
def test_clamps_run_inside_the_convolutions_where_they_need_not_be_exact() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 3, 7, 7)
    exact, fused = Residual(), Residual()
    for module in exact.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    fused.load_state_dict(exact.state_dict())
    stock = copy.deepcopy(exact).eval()
    thawkit.freeze(exact, {0: "head", 1: "bias"}, example=x)
    report = thawkit.freeze(fused, {0: "head", 1: "bias"}, example=x, exact=False)
    assert "not exact" in str(report)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), exact(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-5, atol=1e-6)
    assert "aten::clamp_" in _operators(exact, x)
    assert "aten::clamp_" not in _operators(fused, x)
    assert "aten::batch_norm" not in _operators(fused, x)
    assert "not exact" in str(thawkit.frozen.set_epoch(fused, 1, example=x))
    assert "aten::clamp_" not in _operators(copy.deepcopy(fused), x)
    x[0, 0, 0, 0] = torch.nan
    assert fused(x)[0].isnan().all()  # recorded
    thawkit.freeze(fused, "head", example=x)
    assert "aten::clamp_" in _operators(fused, x)


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 3, 0, 8), (3, 8)])
def test_a_wrong_input_fails_where_it_is_given(shape: tuple[int, ...]) -> None:
    frozen, stock = _pair(F.relu)
    for net in (frozen, stock):
        with pytest.raises(RuntimeError):
            net.conv(torch.zeros(shape, dtype=torch.float64))


def test_second_derivatives_of_a_folded_convolution() -> None:
    frozen, _ = _pair(F.relu)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: frozen.bn(frozen.conv(x)).relu().square(), (x,))


def test_at_once_every_layer_returns_its_value(build) -> None:
    model, x = build("small_cnn"), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "head", example=x)
    assert isinstance(model[0](x), Deferred)
    with at_once():
        convolved = model[0](x)
        normalized = model[1](convolved)
    assert type(convolved) is type(normalized) is Tensor
    torch.testing.assert_close(normalized + 0, model[1](model[0](x)) + 0)


class _Writes(nn.Module):
    """Writes to what a layer waits for, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor, more: float = 0.0) -> Tensor:
        h = self.first(x)
        y = self.bn(self.conv(h))
        if more:
            h.add_(more)
        return self.head(F.relu(y + h).mean((2, 3)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_write_that_the_example_did_not_show_is_refused(mode) -> None:
    stock = _Writes().eval()
    model, x = copy.deepcopy(stock), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "bias", example=x)
    model.eval()
    x[0, 0, 0, 0] = torch.nan  # which is no write
    with mode():
        torch.testing.assert_close(model(x), stock(x), equal_nan=True)
        with pytest.raises(ThawkitError, match=r"the input of a frozen .* was written to"):
            model(x, 1.0)
