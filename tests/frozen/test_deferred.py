"""Tensors that stand for a result not yet computed: every way to touch one gives what stock modules give."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import Deferred


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
    with pytest.raises(ThawkitError, match=r"writes to a tensor after .* let it write to a copy"):
        frozen.bn(y).sum()


@pytest.mark.parametrize("write", ["copy_", "data", "statistics", "load_state_dict"])
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
        elif write == "statistics":
            net.bn.running_mean += 0.5
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
