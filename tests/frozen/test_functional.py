"""Functions that a model calls itself save as little as the modules of the same name, and change nothing."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import thawkit
from thawkit.frozen import functional
from thawkit.frozen.deferred import FUNCTIONS

CALLS = {
    "relu": F.relu,
    "relu of torch": torch.relu,
    "relu method": lambda x: x.relu(),
    "relu in place": lambda x: F.relu(x + 0, inplace=True),
    "relu_": lambda x: (x + 0).relu_(),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, max_val=0.5),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: x.clamp(-0.4, max=0.9),
    "clamp from below": lambda x: torch.clamp(x, min=0.2),
    "abs": lambda x: x.abs(),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "max_pool2d, default stride": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, kernel_size=3, stride=2, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 3)),
    "frozen convolution": lambda x: F.conv2d(x, torch.full((2, 4, 3, 3), 0.3, dtype=x.dtype), padding=1),
}
KEPT = {  # what is computed as before, or saved as before
    "clamp by tensors": lambda x: x.clamp(torch.tensor(-0.4), torch.tensor(0.4)),
    "max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "gelu": F.gelu,
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x + 0, inplace=True),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[2:]),
    "dropout outside of training": lambda x: F.dropout(x, 0.5, False),
    "view": lambda x: x.view(x.shape[0], -1),
    "view by dtype": lambda x: x.contiguous().view(x.dtype),
}


class Calling(nn.Module):
    """A stem, a call, a frozen layer and a head: only the stem's bias and the head train."""

    def __init__(self, call) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.call = call
        self.tail, self.head = nn.LazyLinear(7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.call(self.stem(x)).flatten(1)))


def _pair(call, dtype) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Calling(call).to(dtype), torch.randn(2, 3, 12, 12, dtype=dtype)
    model(x)
    stock = copy.deepcopy(model)
    thawkit.freeze(model, "stem.bias+head", example=x)
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return model, stock, x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("call", [*CALLS.values(), *KEPT.values()], ids=[*CALLS, *KEPT])
def test_values_and_gradients(call, dtype) -> None:
    model, stock, x = _pair(call, dtype)
    expected, found = stock(x), model(x)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert type(found) is Tensor
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
        else:
            assert torch.allclose(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_less_is_saved(call) -> None:
    torch.manual_seed(0)
    model, x = Calling(call), torch.randn(2, 3, 12, 12)
    model(x)
    report = thawkit.freeze(model, "stem.bias+head", example=x)
    assert report.saved_bytes < report.saved_bytes_before
    # two bits an element at most, and what the head's weight needs
    assert report.saved_bytes <= 2 * 4 * 12 * 12 / 4 + 2 * 7 * 4


def test_only_the_callers_are_watched_and_thawing_leaves_no_trace() -> None:
    model = torchvision.models.densenet121(num_classes=4)
    before = [dict(vars(m), _parameters=None, _buffers=None) for m in model.modules()]
    thawkit.freeze(model, "bias", example=torch.zeros(1, 3, 64, 64))
    watched = [name for name, m in model.named_modules() if m._forward_pre_hooks]
    assert watched == [""]
    thawkit.unfreeze(model)
    assert [dict(vars(m), _parameters=None, _buffers=None) for m in model.modules()] == before


def test_a_model_that_fails_inside_leaves_no_mode_behind() -> None:
    model, _, x = _pair(F.relu, torch.float32)
    with pytest.raises(RuntimeError):
        model(x[:, :2])
    assert torch.overrides._get_current_function_mode_stack() == []
    handle = model.register_forward_pre_hook(lambda module, args: 1 / 0, prepend=True)
    with pytest.raises(ZeroDivisionError):
        model(x)
    handle.remove()
    assert torch.overrides._get_current_function_mode_stack() == []
    assert model(x).requires_grad


def test_an_interrupted_forward_is_over_at_the_next() -> None:
    model, _, x = _pair(F.relu, torch.float32)
    call, model.call = model.call, lambda x: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model.call = call
    assert model(x).requires_grad
    assert torch.overrides._get_current_function_mode_stack() == []


def test_copies_and_pickles_go_on_saving_less() -> None:
    model, stock, x = _pair(F.relu, torch.float32)
    file = io.BytesIO()
    torch.save(copy.deepcopy(model.eval()).state_dict(), file)
    again = copy.deepcopy(model)
    again(x).sum().backward()
    assert again.stem.bias.grad is not None
    thawkit.unfreeze(again)
    assert not again._forward_hooks
    assert not again._forward_hooks_always_called
    assert model._forward_hooks
    assert stock.state_dict().keys() == again.state_dict().keys()


def test_compile_and_export_see_the_stock_function() -> None:
    model, stock, x = _pair(F.relu, torch.float32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), stock(x), atol=1e-5)
    exported = torch.export.export(model.eval(), (x,)).module()
    assert torch.allclose(exported(x), stock(x), atol=1e-5)


class Viewing(nn.Module):
    """The classic that breaks where a layer changes the memory order: ``view`` of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2)
        return self.fc(x.view(-1, 8 * 36))


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("train", ["bias", "norm", "head"])
def test_a_view_of_feature_maps_works(train: str, example: bool) -> None:
    torch.manual_seed(0)
    model, x = Viewing().train(), torch.randn(4, 3, 12, 12)
    model.bn.running_mean.normal_()
    stock = copy.deepcopy(model)
    stock.bn.eval()
    report = thawkit.freeze(model, train, example=x if example else None)
    assert torch.allclose(model(x), stock(x), atol=1e-5)
    if example and train == "bias":
        # the flattened input of the head, one bit a feature, two bits a maximum
        assert report.saved_bytes == 4 * 8 * (36 * 4 + 144 / 8 + 36 * 2 / 8)


class Branching(nn.Module):
    """What no tracer follows: the data decide, weights are shared and used by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2 if x.sum() > 0 else 3):
            x = self.bn(self.conv(x))
            x = F.relu(x) if x.mean() > -1 else torch.tanh(x)
        x = x + F.conv2d(x, self.conv.weight.flip(0), self.conv.bias, padding=1)
        x[:, 0] = 0
        return self.head(x.amax((2, 3)))


class Generated(nn.Module):
    """Convolution weights that are computed, and a list of features as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        a = F.batch_norm(
            F.conv2d(x, weight, padding=1),
            self.bn.running_mean,
            self.bn.running_var,
            self.bn.weight,
            self.bn.bias,
        )
        b = self.bn(self.conv(a))
        return [self.head(F.relu(b).mean((2, 3))), F.relu_(b), b.clone()]


class Looped(nn.Module):
    """Hooks that write, a stand-in kept on the module, gradients taken inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            self.kept = self.bn(self.conv(x))
            energy = F.relu(self.kept).square().sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        self.kept.mul_(0.5)
        return self.head((self.kept + slope).mean((2, 3)))


@pytest.mark.parametrize("train", ["bias", "norm", "all", "head"])
@pytest.mark.parametrize("kind", [Branching, Generated, Looped])
def test_models_that_cannot_be_analysed_stay_right(kind, train: str) -> None:
    torch.manual_seed(0)
    model = kind().double()
    nn.init.uniform_(model.bn.weight, 0.5, 1.5)
    model.bn.running_mean.normal_()
    stock, x = copy.deepcopy(model), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    thawkit.freeze(model, train, example=x)
    for ours, theirs in zip(model.modules(), stock.modules(), strict=True):
        theirs.training = ours.training
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    for data in (x, -x):
        outputs = [
            torch.stack([t.sin().sum() for t in torch.utils._pytree.tree_leaves(m(data))])
            for m in (model, stock)
        ]
        assert torch.allclose(*outputs, rtol=1e-12)
        for output in outputs:
            output.sum().backward()
        for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if theirs.grad is not None:
                assert torch.allclose(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)


def test_the_table_names_functions_that_modes_see() -> None:
    seen = set()

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 4, 12, 12)
    with Spy():
        for call in [*CALLS.values(), *KEPT.values()]:
            call(x)
    called = {f for f in FUNCTIONS if f in seen}
    assert len(called) > 20
    assert functional.watch  # the module fills the table when it is imported


class Flattened(nn.Module):
    """A layer that trains after feature maps that a fused convolution may have laid out channels-last."""

    def __init__(self, flatten) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.flatten, self.fc = flatten, nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(F.gelu(self.bn(self.conv(x)))))


@pytest.mark.parametrize(
    "flatten",
    [lambda x: x.flatten(1), lambda x: x.reshape(len(x), -1), lambda x: x.view(len(x), -1)],
    ids=["flatten", "reshape", "view"],
)
def test_what_is_computed_again_lies_as_it_did(flatten) -> None:
    torch.manual_seed(0)
    model, x = Flattened(flatten), torch.randn(4, 3, 6, 6)
    model.bn.running_mean.normal_()
    stock = copy.deepcopy(model)
    stock.bn.eval()
    thawkit.freeze(model, "bn.bias+fc.*", example=x)
    for net in (model, stock):
        net(x).square().sum().backward()
    for name in ("bn.bias", "fc.weight", "fc.bias"):
        ours, theirs = model.get_parameter(name).grad, stock.get_parameter(name).grad
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4), name
