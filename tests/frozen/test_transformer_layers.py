"""Transformers: what is saved, exactly, and gradients whatever trains."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import thawkit
from thawkit.frozen.measure import saved_by_module
from thawkit.frozen.transformer_layers import FrozenMultiheadAttention
from thawkit.ops.frozen.linear import linear, usable
from thawkit.ops.frozen.packed import Packed, packed_of
from thawkit.ops.frozen.recompute import apply_again

POLICIES = ["all", "bias", "norm", "head", "last:1", "*.mlp.*", "lora:2"]


def _vit(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5, dropout=0.0)
    nn.init.normal_(model.heads.head.weight)
    return model.to(dtype)


def _gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = model(images).logsumexp(1).sum()
    return dict(zip(trains, torch.autograd.grad(loss, list(trains.values())), strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_a_vision_transformer(policy: str) -> None:
    model = _vit()
    thawkit.freeze(model, policy)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours = _gradients(model, images)
    stock = copy.deepcopy(model)
    for module in stock.modules():  # adapters stay, all else is torch's own
        if type(module).__name__.startswith(("Frozen", "Recomputable")):
            module.__class__ = module.stock
    theirs = _gradients(stock, images)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-11, atol=1e-12)


def test_bytes_of_a_trained_vision_transformer() -> None:
    """Neither the outputs of the normalizations nor those of the GELUs, beside what is needed."""
    model = _vit(torch.float32)
    report = thawkit.freeze(model, "all", example=torch.zeros(2, 3, 32, 32))
    tokens, dim, hidden, layers = 17, 32, 64, 2
    normalized = 2 * tokens * dim * 4
    activated = 2 * tokens * hidden * 4
    assert report.saved_bytes_before is not None
    # torchvision's attention copies queries, keys and values besides; they are views of one tensor here.
    # The head takes a slice of the last normalization's output.
    less = layers * (2 * normalized + activated) + normalized
    assert report.saved_bytes == report.saved_bytes_before - less


def test_a_recipe_ends_where_its_tensor_is_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            y += 1
            return self.linear(y)

    stock = Writes().double()
    model = copy.deepcopy(stock)
    thawkit.freeze(model, "all")
    x = torch.randn(5, 4, dtype=torch.float64)
    for net in (model, stock):
        net(x).square().sum().backward()
    torch.testing.assert_close(model.linear.weight.grad, stock.linear.weight.grad, rtol=1e-12, atol=1e-13)


def test_second_derivatives_go_through_a_recipe() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)).double()
    thawkit.freeze(model, "all")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def weight_gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(model(x).square().sum(), model[1].weight, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(model, (x,))
    assert torch.autograd.gradcheck(weight_gradient, (x,))


NORMS: dict[str, tuple[Callable[[int], nn.Module], int]] = {  # and what one keeps of a row beside its input
    "layer norm": (nn.LayerNorm, 2),
    "RMS norm": (nn.RMSNorm, 0),
    "timm's layer norm": (timm.layers.LayerNorm, 2),
    "timm's RMS norm": (timm.layers.RmsNorm, 0),
}


@pytest.mark.parametrize("policy", ["all", "0.*", "1.weight", "2.*"])
@pytest.mark.parametrize("norm", NORMS)
def test_normalizations_keep_their_input_alone(norm: str, policy: str) -> None:
    make, statistics = NORMS[norm]
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(8, 6), make(6), nn.Linear(6, 3)).double()
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, policy)
    for own, of_stock in zip(frozen.parameters(), stock.parameters(), strict=True):
        of_stock.requires_grad_(own.requires_grad)
    x = torch.randn(5, 8, dtype=torch.float64)
    ours, theirs = _gradients(frozen, x), _gradients(stock, x)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-13, atol=1e-14)
    known = {t.untyped_storage().data_ptr() for t in (x, *frozen.parameters())}
    if policy == "all":
        assert sum(saved_by_module(frozen, x, known).values()) == 8 * 5 * (6 + statistics)
        assert torch.autograd.gradgradcheck(frozen, (x.requires_grad_(),))


@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 0, 8), (2, 3, 8)])
@pytest.mark.parametrize("policy", ["head", "all", "0.bias"])
def test_rows_of_every_shape(shape: tuple[int, ...], policy: str) -> None:
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))
    model = copy.deepcopy(stock)
    thawkit.freeze(model, policy)
    x = torch.randn(shape)
    for net in (model, stock):
        net(x).square().sum().backward()
    torch.testing.assert_close(model(x), stock(x))
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("keys", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"need_weights": False, "attn_mask": True},
        {"need_weights": False, "key_padding_mask": True},
    ],
)
def test_attention_with_every_option_is_the_stock_one(batch_first: bool, options: dict, keys: dict) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(8, 2, batch_first=batch_first, **keys).double()
    ours = copy.deepcopy(stock)
    ours.__class__ = FrozenMultiheadAttention
    if "attn_mask" in options:
        options = {**options, "attn_mask": torch.triu(torch.ones(5, 5), 1).bool()}
    if "key_padding_mask" in options:
        options = {**options, "key_padding_mask": torch.arange(5).expand(5, 5) > torch.arange(5)[:, None]}
    x = torch.randn(5, 5, 8, dtype=torch.float64)
    other = torch.randn(5, 5, 8, dtype=torch.float64)
    for arguments in ((x, x, x), (x, other, other)):
        results = []
        for module in (ours, stock):
            module.zero_grad()
            y, weights = module(*arguments, **options)
            y.square().sum().backward()
            results.append((y.detach(), module.in_proj_weight.grad, module.out_proj.weight.grad))
            assert (weights is None) is (not options.get("need_weights", True))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_packed_weights_follow_the_weight_and_go_into_no_copy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 3))
    thawkit.freeze(model, "head")
    x = torch.randn(10, 64)
    model(x)
    for write in (lambda w: w.data.mul_(2), lambda w: w.detach().add_(0.5)):
        write(model[0].weight)
        expected = torch.tanh(x @ model[0].weight.T + model[0].bias) @ model[2].weight.T + model[2].bias
        torch.testing.assert_close(model(x), expected)
    clone = copy.deepcopy(model)
    clone[0].weight.data.zero_()
    assert not torch.allclose(clone(x), model(x))
    stream = io.BytesIO()
    torch.save(model, stream)
    assert len(stream.getvalue()) < 1.5 * sum(p.nbytes for p in model.parameters()) + 20_000


def test_the_input_gradient_of_a_packed_linear() -> None:
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
    stock = copy.deepcopy(frozen).requires_grad_(False)
    thawkit.freeze(frozen, "2.bias")
    x, y = (torch.randn(7, 32, generator=torch.manual_seed(1)).requires_grad_() for _ in range(2))
    frozen(x).square().sum().backward()
    stock(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert sum(saved_by_module(frozen, x, set()).values()) == 7 * 64 * 4  # what GELU needs


def test_a_weight_that_never_stays_is_packed_no_more() -> None:
    """As under FSDP, which gathers the weights anew for each forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 3))
    thawkit.freeze(model, "head")
    x = torch.randn(10, 64, requires_grad=True)
    for changes in range(8):
        model[0].weight.data = model[0].weight.data.clone() + 0.01
        gradients = []
        for net in (model, copy.deepcopy(model)):  # the copy has a pack of its own
            (gradient,) = torch.autograd.grad(net(x).square().sum(), [x])
            gradients.append(gradient)
        torch.testing.assert_close(*gradients)
        packed = packed_of(model[0])
        assert packed.given_up is (changes >= 3)
        assert (packed.nbytes() > 0) is (changes < 3)
    thawkit.unfreeze(model)
    thawkit.freeze(model, "head")
    for _ in range(5):  # and one that serves often before it changes is packed again
        for _ in range(10):
            model(x)
        model[0].weight.data.add_(0.01)
    assert not packed_of(model[0]).given_up


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("trains", [True, False])
def test_large_products_without_layouts_that_stay(trains: bool, transposed: bool) -> None:
    """As exact as torch's, where oneDNN takes the matrices as they are."""
    torch.manual_seed(0)
    rows, size, wider = 256, 512, 520
    x, g = torch.randn(rows, size, requires_grad=True), torch.randn(rows, wider)
    weight = torch.randn((size, wider) if transposed else (wider, size), requires_grad=trains)
    assert usable(Packed(given_up=True), x, weight) is not None
    assert usable(Packed(given_up=True), x[:100], weight) is None
    wanted = [t for t in (x, weight) if t.requires_grad]

    def results(product: Callable, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        y = product(x.to(dtype), weight.to(dtype))
        return [y.detach(), *torch.autograd.grad(y, wanted, g.to(dtype))]

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        return x @ (weight if transposed else weight.t())

    ours = results(lambda x, w: linear(x, w, None, Packed(given_up=True), transposed=transposed))
    for found, theirs, truth in zip(ours, results(stock), results(stock, torch.float64), strict=True):
        error, of_torch = ((t - truth).norm() / truth.norm() for t in (found, theirs))
        assert 0 < error < 2 * of_torch


def test_an_adapted_layer_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
    thawkit.freeze(model, "lora:2")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    x = torch.randn(5, 64)
    with torch.no_grad():
        without = model(x)
    torch.testing.assert_close(without, model(x).detach())
    assert packed_of(model[0]).nbytes() > 0


@pytest.mark.parametrize("policy", ["all", "*.weight"])
def test_values_written_past_the_counter_are_not_computed_again(policy: str) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(8, 16), nn.Linear(16, 4)
            self.gelu = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.gelu(self.a(x))
            hidden.data.mul_(1.5)
            return self.fc(hidden)

    torch.manual_seed(0)
    stock, x = Written(), torch.randn(5, 8)
    frozen = copy.deepcopy(stock)
    thawkit.freeze(frozen, policy, example=x)
    for model in (stock, frozen):
        model(x).square().sum().backward()
    torch.testing.assert_close(frozen.fc.weight.grad, stock.fc.weight.grad)
    torch.testing.assert_close(frozen.a.weight.grad, stock.a.weight.grad)


@pytest.mark.parametrize("policy", ["all", "bias", "lora:2", "channels:0.5", "channels:0.5:out"])
def test_a_backward_inside_autocast_keeps_full_precision(policy: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))
    thawkit.freeze(model, policy)
    trains = [p for p in model.parameters() if p.requires_grad]
    for parameter in trains:
        nn.init.normal_(parameter)
    x = torch.randn(5, 16, requires_grad=True)
    y = model(x)
    outside = torch.autograd.grad(y.square().sum(), [x, *trains], retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y, [x, *trains], 2 * y.detach())
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b)


def test_what_runs_again_is_cast_as_it_was_in_the_forward() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    found = []
    for function in (lambda x, weight: apply_again(F.linear, x, weight), F.linear):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, weight)
        assert y.dtype == torch.bfloat16
        found.append(torch.autograd.grad(y, [x, weight], torch.ones_like(y)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_under_autocast_no_layout_is_kept_of_a_frozen_weight() -> None:
    """Its copy in half precision is another one at each forward."""
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    model = copy.deepcopy(stock)
    thawkit.freeze(model, "0.bias+2.bias")
    x = torch.randn(7, 32, requires_grad=True)
    found = []
    for net in (model, stock):
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), [x, net[0].bias, net[2].bias])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert thawkit.frozen.packed_bytes(model) == 0
