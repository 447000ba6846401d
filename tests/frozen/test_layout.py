"""Folded results lie channels-last; what a model makes of its tensors' order stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit

LAST = torch.channels_last


class Mixed(nn.Module):
    """A pair that folds, and another tensor that lies channels-last by itself."""

    def __init__(self, use: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.ln, self.mix, self.head = nn.LayerNorm(3), nn.Linear(3, 3), nn.LazyLinear(5)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self, x, F.relu(self.bn(self.conv(x)))).flatten(1))


def _tokens_to_an_image_and_back(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    image = model.ln(x.permute(0, 2, 3, 1).reshape(len(x), -1, 3)).reshape(len(x), 6, 6, 3)
    image = image.permute(0, 3, 1, 2).contiguous()
    return torch.cat([model.mix(image.flatten(2).transpose(1, 2)).mean(1), y.mean((2, 3))], 1)


def _view_written_to(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    tokens = model.ln(x.permute(0, 2, 3, 1).reshape(len(x), -1, 3))
    image = tokens.view(len(x), 6, 6, 3).permute(0, 3, 1, 2)
    pooled = image.flatten(2).mean(-1)
    image.mul_(2.0)
    return torch.cat([tokens.mean(1) + pooled, y.mean((2, 3))], 1)


def _written_by_a_view_of_what_came_of_it(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    y = torch.sin(y) * 2
    y.flatten(2)[:, :, ::2].zero_()
    return y


def _read_by_strides(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(y).as_strided((len(y), 8, 4), (288, 36, 1))


USES = {
    "tokens to an image and back": _tokens_to_an_image_and_back,
    "a view is written to": _view_written_to,
    "the input is flattened": lambda model, x, y: torch.cat([y.mean((2, 3)), torch.flatten(x, 1)], 1),
    "written by a view of what came of it": _written_by_a_view_of_what_came_of_it,
    "read by its strides": _read_by_strides,
    "viewed": lambda model, x, y: torch.sin(y).view(len(y), 8, 36).mean(2),
    "rows of the input": lambda model, x, y: torch.cat([y.mean((2, 3)), x.reshape(len(x), -1)], 1),
}


@pytest.mark.parametrize("policy", ["bias", "norm", "norm+mix.weight", "head"])
@pytest.mark.parametrize("use", USES)
def test_as_the_stock_model(use: str, policy: str) -> None:
    stock, x = Mixed(USES[use]), torch.randn(2, 3, 6, 6)
    stock(x)
    stock.eval()
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, policy, example=x)
    trains = dict(frozen.named_parameters())
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(trains[name].requires_grad)
    for given in (x, x.to(memory_format=LAST)):
        if "stride" in use and given is not x:
            continue  # as_strided reads other elements then, in the stock model as well
        for model in (stock, frozen):
            model.zero_grad()
            model(given).square().sum().backward()
        torch.testing.assert_close(frozen(given), stock(given), rtol=1e-5, atol=1e-6)
        for name, parameter in stock.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(trains[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_callers_tensors_stay_where_they_are() -> None:
    model, x = Mixed(USES["the input is flattened"]), torch.randn(2, 3, 6, 6)
    model(x)
    model = model.to(memory_format=LAST).share_memory()
    places = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    batch = x.to(memory_format=LAST)
    place = batch.data_ptr(), batch.stride()
    thawkit.freeze(model, "bias", example=batch)
    model(batch).sum().backward()
    assert (batch.data_ptr(), batch.stride()) == place
    assert {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == places
    assert all(p.is_shared() for p in model.parameters())


def test_standardized_weights_stay_where_they_are() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean = self.weight.reshape(len(self.weight), -1).mean(1)
            return F.conv2d(x, self.weight - mean.view(-1, 1, 1, 1), self.bias)

    model = nn.Sequential(
        Standardized(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    model = model.to(memory_format=LAST)
    place = model[0].weight.data_ptr(), model[0].weight.stride()
    thawkit.freeze(model, "bias", example=torch.randn(2, 3, 6, 6))
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert (model[0].weight.data_ptr(), model[0].weight.stride()) == place


@pytest.mark.parametrize("policy", ["lora:2", "channels:0.5", "channels:0.5:out", "all", "0.weight+2.weight"])
def test_products_of_three_dimensions_may_be_written_to(policy: str) -> None:
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Linear(8, 3))
    for x in (torch.randn(3, 4, 8), torch.randn(4, 3, 8).transpose(0, 1)):
        frozen = copy.deepcopy(stock)
        thawkit.freeze(frozen, policy, example=x)
        torch.testing.assert_close(frozen(x), stock(x))
        frozen[0](x).mul_(2).sum().backward()


def test_names_of_a_users_own_stay() -> None:
    class Own(nn.Module):
        kept, exact, folds = True, True, True

        def __init__(self) -> None:
            super().__init__()
            self.kept, self.exact, self.folds = True, True, True

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) if self.kept and self.exact and self.folds else x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Own(), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    before = model(x)
    for policy in ("all", "bias", "3.weight"):
        thawkit.freeze(model, policy, example=x)
        torch.testing.assert_close(model(x), before)
        thawkit.unfreeze(model)
        assert (model[2].kept, model[2].exact, model[2].folds) == (True, True, True)


def test_what_the_model_returns_does_not_wait() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.bn(self.conv(x))
            return features, self.head(F.relu(features).mean((2, 3)))

    model, x = Returns(), torch.randn(2, 3, 6, 6)
    thawkit.freeze(model, "bias", example=x)
    features, _ = model(x)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    assert type(features) is Tensor


@pytest.mark.parametrize("function", [F.relu, torch.relu, torch.abs, lambda t: t.clamp(-1, 1)])
def test_checkpoints_in_checkpoints(function: Callable[[Tensor], Tensor]) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv, self.bn, self.head = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def block(self, t: Tensor) -> Tensor:
            return self.bn(self.conv(function(t))) + t

        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(self.block, self.norm(self.stem(x)), use_reentrant=False)
            return self.head(F.relu(y).mean((2, 3)))

    torch.manual_seed(0)
    stock, x = Nested().eval(), torch.randn(2, 3, 6, 6)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    trains = dict(frozen.named_parameters())
    for model in (stock, frozen):
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
    for name, parameter in stock.named_parameters():
        if trains[name].requires_grad:
            torch.testing.assert_close(trains[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def _with_positions(y: Tensor) -> Tensor:
    tokens = y.permute(0, 2, 3, 1).contiguous()
    tokens += 1.5
    return torch.cat([tokens.mean((1, 2)), y.mean((2, 3))], 1)


def _in_another_order(y: Tensor) -> Tensor:
    z = y.to(memory_format=LAST)
    z.mul_(2)
    return torch.cat([z.mean((2, 3)), y.mean((2, 3))], 1)


def _by_five_sizes(y: Tensor) -> Tensor:
    s = torch.sin(y) * 2
    s.unsqueeze(1).flatten(2)[..., ::2].zero_()
    return s


def _like_another(y: Tensor) -> Tensor:
    s = torch.sin(y) * 2
    s.reshape_as(torch.empty(len(y), 8, 36))[..., ::2].zero_()
    return s


def _named(y: Tensor) -> Tensor:
    s = torch.sin(y) * 2
    torch.reshape(input=s, shape=(len(y), -1))[:, ::2].zero_()
    return s


COPIES = (_with_positions, _in_another_order, _by_five_sizes, _like_another, _named)


@pytest.mark.parametrize("mode", ["both", "evaluation"])
@pytest.mark.parametrize("use", COPIES, ids=lambda use: use.__name__)
def test_views_and_copies_stay_what_they_are(use: Callable[[Tensor], Tensor], mode: str) -> None:
    wanted = lambda model, y: use(y) if mode == "both" or not model.training else torch.cat([y, y], 1)[:, :8]
    if use in (_with_positions, _in_another_order) and mode == "evaluation":
        wanted = lambda model, y: use(y) if not model.training else torch.cat([y, y], 1).mean((2, 3))
    stock, x = Mixed(lambda model, x, y: wanted(model, y)), torch.randn(2, 3, 6, 6)
    stock(x)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, "bias", example=x)
    trains = dict(frozen.named_parameters())
    for model in (stock, frozen):
        model.eval()
        model(x).square().sum().backward()
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-5, atol=1e-6)
    for name, parameter in stock.named_parameters():
        if trains[name].requires_grad and parameter.grad is not None:
            torch.testing.assert_close(trains[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_in_a_checkpoint_runs_again_in_the_same_order() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.Linear(288, 2),
            )
            self.checkpoints = True

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn(self.conv(x)))
            block = lambda t: torch.tanh(F.dropout(t, 0.5))
            z = checkpoint(block, y, use_reentrant=False) if self.checkpoints else block(y)
            return self.head(z.flatten(1) + y.flatten(1))

    torch.manual_seed(0)
    model, x = Dropped(), torch.randn(2, 3, 6, 6)
    thawkit.freeze(model, "bias", example=x)
    gradients = []
    for model.checkpoints in (True, False):
        torch.manual_seed(1)
        loss = model(x).square().sum()
        gradients.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_an_empty_batch_passes_adapters() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    thawkit.freeze(model, "lora:2", example=torch.randn(3, 4, 8))
    x = torch.zeros(0, 4, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.shape == x.shape


class _Later(nn.Module):
    """Views what it gets from a certain call on, as a branch does that is taken now and then."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.calls, self.first = 0, first

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.first:
            x.view(len(x), -1)[:, ::3] = 0
        return x


@pytest.mark.parametrize("first", range(1, 10))
def test_a_path_that_is_first_taken_while_freezing(first: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), _Later(first)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    ).eval()
    stock = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "bias", example=x)
    model.eval()
    stock[3].calls = model[3].calls
    if model[3].calls >= first:  # it has been seen
        torch.testing.assert_close(model(x), stock(x))
