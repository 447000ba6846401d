"""Results that wait are used late, or in another way than a layer after them would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import thawkit
from tests.frozen.beside_stock import assert_gradients_alike, train_alike
from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import Deferred
from thawkit.frozen.folded import folded_bytes


def _pair(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, **options), nn.BatchNorm2d(8)).eval()
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2.0)
    return model


class Model(nn.Module):
    """A convolution, a normalization and what a test does with their result, then a head.

    On a second path a ReLU joins, so that freezing on an example lets the normalization go on waiting.
    """

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = _pair()
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)
        self.use = use
        self.used: type[Tensor] = Tensor

    def forward(self, x: Tensor) -> Tensor:
        joined = self.relu(self.bn(self.conv(x + 1)))
        y = self.bn(self.conv(x))
        self.used = type(y)
        return self.head(self.use(y).mean((2, 3)) + joined.mean((2, 3)))


def _written(
    change: Callable[[Tensor], Any], after: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def use(y: Tensor) -> Tensor:
        y = after(y)
        change(y)
        return y

    return use


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


def _hooked(y: Tensor) -> Tensor:
    y.register_hook(lambda grad: grad * 5)
    return Tripled.apply(y)


def _halved_in_part(y: Tensor) -> Tensor:
    y[:, 2:5].mul_(0.5)
    return Tripled.apply(y)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda y: y.view(len(y), -1)[:, ::2].zero_(),
    "clamped view": lambda y: y.view(len(y), -1).clamp_(min=0.1),
    "flatten": lambda y: y.flatten(1)[:, ::2].zero_(),
    "torch.flatten": lambda y: torch.flatten(y, 1)[:, ::2].zero_(),
    "reshape": lambda y: y.reshape(len(y), -1)[:, ::2].zero_(),
    "contiguous": lambda y: y.contiguous().mul_(2),
    "as_strided": lambda y: y.as_strided((2, 8, 4), (288, 36, 1)).zero_(),
}
USES: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"{name} of a sum": _written(change, lambda y: y) for name, change in CHANGES.items()},
    **{f"{name} of the negative": _written(change, torch.neg) for name, change in CHANGES.items()},
    **{
        f"{name}, in place": lambda y, act=act: Tripled.apply(act(y))
        for name, act in {
            "silu": nn.SiLU(inplace=True),
            "functional silu": partial(F.silu, inplace=True),
            "gelu": F.gelu,
            "elu": nn.ELU(inplace=True),
            "hardswish": nn.Hardswish(inplace=True),
            "leaky relu": nn.LeakyReLU(inplace=True),
            "mish": nn.Mish(inplace=True),
        }.items()
    },
    "silu in place, then the tensor itself": lambda y: (F.silu(y, inplace=True), Tripled.apply(y))[1],
    "views of other sizes": lambda y: (y[:, :, 0] * 2).view(2, 48)[..., None, None][:, :8],
    "stacked": lambda y: torch.stack([y, y], 1).view(2, 8, 72)[..., None],
    "flattened in part": lambda y: y.flatten(2).view(2, 8, 36)[..., None],
    "a hook before a Function": _hooked,
    "a part written before a Function": _halved_in_part,
    "a view of an added size": lambda y: torch.relu(y).unsqueeze(2).view(2, 8, -1)[..., None],
    "strides": lambda y: y.as_strided((2, 8, 4), (288, 36, 1))[..., None],
    "pairs as complex numbers": lambda y: torch.view_as_complex(y.view(2, 8, 18, 2)).abs()[..., None],
    "checkpointed, reentrant": lambda y: checkpoint(torch.tanh, y, use_reentrant=True),
}


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("use", USES)
def test_as_the_stock_model(use: str, with_example: bool) -> None:
    torch.manual_seed(1)
    stock, x = Model(USES[use]), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    # Where the example shows such a use, nothing waits for it; a layout is asked for where it shows alone.
    late = not any(word in use for word in ("view", "flatten", "shape", "contiguous", "stride", "stack"))
    if late:
        frozen.use = torch.relu
    thawkit.freeze(frozen, "bias", example=x if with_example else None)
    frozen.use = USES[use]
    train_alike(stock, frozen)
    stock.bn.eval()
    for model in (stock, frozen):
        model(x).square().sum().backward()
    if late:
        assert frozen.used is Deferred
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-5, atol=1e-6)
    assert_gradients_alike(frozen, stock, atol=1e-5)


def test_a_result_is_that_of_the_modes_it_was_made_in() -> None:
    class Teaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = _pair()
            self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.bn(self.conv(x + 1))
            return self.head((self.relu(self.bn(self.conv(x))) - self.relu(target)).mean((2, 3)))

    stock, x = Teaches().eval(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    stock.conv.weight.requires_grad_(False)
    for model in (stock, frozen):
        model(x).square().sum().backward()
    for ours, theirs in ((frozen.conv.bias, stock.conv.bias), (frozen.bn.bias, stock.bn.bias)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_result_is_that_of_the_weights_it_was_made_with() -> None:
    stock, x = nn.Sequential(*_pair(), nn.Linear(8, 2)), torch.randn(2, 3, 8, 8)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias")
    stock, frozen = stock[:2], frozen[:2]  # a head that is not used: without one, the convolution would be it
    other = {name: p + 1 for name, p in stock.named_parameters()}
    ours, theirs = (torch.func.functional_call(model, other, (x,)) for model in (frozen, stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours, theirs = frozen(x), stock(x)
    assert type(ours) is Deferred
    ours = ours + 0
    assert folded_bytes(frozen[0]) > 0
    with torch.no_grad():
        for parameter in (*frozen.parameters(), *stock.parameters()):
            parameter.mul_(2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_a_hook_keeps_is_that_of_its_time() -> None:
    kept: list[Tensor] = []
    stock = nn.Sequential(*_pair(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    frozen, x = copy.deepcopy(stock), torch.randn(2, 3, 6, 6)
    thawkit.freeze(frozen, "bias", example=x)
    for model in (frozen, stock.eval()):
        model[1].register_forward_hook(lambda module, args, output: kept.append(output))
        model(x)
    with torch.no_grad():
        for parameter in (*frozen.parameters(), *stock.parameters()):
            parameter.add_(1)
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-5)


class Keeps(nn.Module):
    """Keeps the result of a pair that a ReLU joins, unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = _pair()
        self.head = nn.Linear(8, 2)
        self.keeps = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        self.kept = y if self.keeps else None
        return self.head(y.relu().mean((2, 3)))


def test_what_the_model_keeps_is_that_of_its_time() -> None:
    stock, x = Keeps(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    for model in (frozen, stock.eval()):
        batch = x.clone()
        model(batch)
        batch.zero_()  # a loader fills it with the next one
        with torch.no_grad():
            model.conv.weight.mul_(2)
    torch.testing.assert_close(frozen.kept, stock.kept, rtol=1e-4, atol=1e-5)


def test_what_nobody_can_know_any_more_is_an_error() -> None:
    model, x = Keeps(), torch.randn(2, 3, 6, 6)
    model.keeps = False
    thawkit.freeze(model, "bias", example=x)
    model.keeps = True
    model(x)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    with pytest.raises(ThawkitError, match="a parameter or buffer of a frozen BatchNorm2d was written to"):
        model.kept.sum()


def test_what_is_overwritten_in_evaluation_alone_does_not_wait() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = _pair(), _pair(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.one(x), self.two(x)
            total = a + b
            if not self.training:
                b.mul_(0.5)
            return self.head((torch.relu(total) + b).mean((2, 3)))

    stock, x = Halves().eval(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-4, atol=1e-5)


BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum and clamp": lambda y: F.relu(y + 1),
    "clamp": F.relu,
    "product": lambda y: y * 2,
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_checkpoints_that_a_result_that_waits_enters(block: str, whole: bool) -> None:
    """What is computed for a checkpoint's input is not saved inside it, where it would be missed later."""

    class Entered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = _pair(bias=False)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            inside = (lambda t: BLOCKS[block](self.bn(t))) if whole else BLOCKS[block]
            y = checkpoint(inside, y if whole else self.bn(y), use_reentrant=False)
            return self.head((y + F.relu(self.bn(self.conv(x)))).mean((2, 3)))

    stock, x = Entered().eval(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    train_alike(stock, frozen)
    for model in (stock, frozen):
        model(x).square().sum().backward()
    assert_gradients_alike(frozen, stock, atol=1e-6)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_050"])
def test_networks_that_checkpoint_their_blocks(name: str) -> None:
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=3), torch.randn(2, 3, 64, 64)
    model.set_grad_checkpointing(True)
    thawkit.freeze(model, "bias", example=x)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_that_end_in_a_result_that_waits(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 3, 1), _pair(bias=False), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(self.block, self.stem(x), use_reentrant=reentrant)
            return self.head(y.relu().mean((2, 3)))

    stock, x = Checkpointed(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias")
    train_alike(stock, frozen)
    for model in (stock, frozen):
        model.block[1].eval()
        model(x).square().sum().backward()
    assert_gradients_alike(frozen, stock, atol=1e-6)


@pytest.mark.parametrize("policy", ["bias", "head"])
def test_a_network_of_silus_in_place(policy: str) -> None:
    torch.manual_seed(0)
    stock, x = timm.create_model("rexnet_100", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, policy, example=x)
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-3, atol=1e-5)


def test_a_model_that_counts_on_its_strides() -> None:
    class Strict(Model):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            return self.head(torch.ops.aten.view(y.relu(), [2, 8, 36]).mean(2))

    stock, x = Strict(torch.relu).eval(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-4, atol=1e-5)


def test_what_has_no_values_and_what_derives_forward() -> None:
    model = nn.Sequential(*_pair(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    thawkit.freeze(model, "bias", example=torch.randn(2, 3, 6, 6))
    assert copy.deepcopy(model).to("meta")(torch.zeros(2, 3, 6, 6, device="meta")).shape == (2, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(torch.zeros(2, 3, 6, 6))).shape == (2, 3)
    x, tangent = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    with forward_ad.dual_level():
        derived = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))).tangent
    step = 1e-3
    near = (model(x + step * tangent) - model(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(derived, near, rtol=0.05, atol=0.01)


def test_layers_without_features() -> None:
    model = nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 2))
    thawkit.freeze(model, "head")
    assert model(torch.zeros(3, 0)).shape == (3, 2)
    with pytest.raises(RuntimeError):
        nn.Sequential(model[1])(torch.tensor(1.0))


def test_a_fold_follows_one_entry_and_the_small_number() -> None:
    """Of an entry that no sample of the weight holds, the version tells; eps is a number of the module."""
    stock = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    frozen, x = copy.deepcopy(stock), torch.randn(2, 3, 6, 6)
    thawkit.freeze(frozen, "1.bias", example=x)  # not bias, which counts the convolution as the head
    frozen(x)
    assert folded_bytes(frozen[0]) > 0
    for model in (frozen, stock):
        with torch.no_grad():
            model[0].weight.view(-1)[1] += 5
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-4, atol=1e-5)
    for model in (frozen, stock):
        model[1].eps = 0.5
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-4, atol=1e-5)


def test_attention_drops_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True).eval()
    frozen, x = copy.deepcopy(stock), torch.randn(2, 5, 16)
    thawkit.freeze(frozen, "bias")
    torch.testing.assert_close(
        frozen.eval()(x, x, x, need_weights=False)[0], stock(x, x, x, need_weights=False)[0]
    )


@pytest.mark.parametrize("take", [F.relu, lambda y: F.relu(y + torch.ones(y.shape))], ids=["clamp", "sum"])
@pytest.mark.parametrize(
    "listen", [lambda y: y.register_hook(lambda g: g), lambda y: y.retain_grad()], ids=["hook", "retain"]
)
def test_listening_to_what_has_been_joined_is_refused_or_shown_on_the_example(take, listen):
    listens = False

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = _pair()
            self.y: Tensor = torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            taken = take(y)
            if listens:
                listen(y)
                self.y = y
            return taken

    x = torch.randn(2, 3, 6, 6)
    frozen = Late()
    thawkit.freeze(frozen, "bias", example=x)
    frozen(x).sum().backward()
    listens = True
    with pytest.raises(ThawkitError, match="of the result of a frozen BatchNorm2d was asked for"):
        frozen(x)

    stock, shown = Late(), Late()
    for parameter in stock.parameters():
        parameter.requires_grad_(parameter is stock.bn.bias)
    thawkit.freeze(shown, "bias", example=x)
    for model in (stock, shown):
        model(x).sum().backward()
    torch.testing.assert_close(shown.bn.bias.grad, stock.bn.bias.grad)
    if stock.y.retains_grad:
        torch.testing.assert_close(shown.y.grad, stock.y.grad)


@pytest.mark.parametrize(
    "overwrite",
    [
        lambda y: (F.relu(y), F.relu(y, inplace=True))[0],
        lambda y: (y + torch.ones(y.shape), F.relu(y, inplace=True))[0].relu(),
        lambda y: (F.relu(y), y.mul_(2))[0],
        lambda y: (F.relu(y), y[:, :2].mul_(2))[0],
    ],
    ids=["clamp", "sum and clamp", "product", "product of a part"],
)
def test_a_hook_on_what_was_written_after_it_was_joined_hears_of_that(overwrite):
    heard: list[Tensor] = []

    def use(y: Tensor) -> Tensor:
        before = overwrite(y)
        y.register_hook(heard.append)
        return before + y * 1.5

    stock, frozen = Model(use).eval(), Model(use).eval()
    frozen.load_state_dict(stock.state_dict())
    thawkit.freeze(frozen, "bias")
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    x = torch.randn(2, 3, 6, 6)
    for model in (stock, frozen):
        model(x).square().sum().backward()
    torch.testing.assert_close(*heard)
    torch.testing.assert_close(frozen.bn.bias.grad, stock.bn.bias.grad)


def test_a_gradient_that_a_clamp_has_taken_is_not_told_in_part():
    seen: list[Tensor] = []

    def use(y: Tensor) -> Tensor:
        seen.append(y)
        return F.relu(y) ** 2 + (y * 1.5) ** 2

    model = Model(use).eval()
    thawkit.freeze(model, "bias")
    loss = model(torch.randn(2, 3, 6, 6)).sum()
    with pytest.raises(ThawkitError, match="of the result of a frozen BatchNorm2d was asked for"):
        torch.autograd.grad(loss, seen)
