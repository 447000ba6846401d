"""Each rewritten layer alone against its stock class."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from thawkit.frozen import layers
from thawkit.frozen.measure import saved_by_module


def _rewrite(module: nn.Module) -> nn.Module:
    """The same module in its rewritten class."""
    module = copy.deepcopy(module)
    module.__class__ = layers.CLASSES[type(module)]
    return module.train(module.training)


def _run(module: nn.Module, x: Tensor, upstream: Tensor | None = None) -> list[Tensor | None]:
    module, x = copy.deepcopy(module), x.clone().requires_grad_()
    y = module(x.clone() if getattr(module, "inplace", False) else x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def _assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 5, stride=3, padding=2),
    nn.Conv1d(4, 4, 4, padding="same", dilation=3, groups=4),
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 8, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 4, 1, stride=2),
    nn.Conv2d(4, 8, 4, padding="same", groups=4),
    nn.Conv2d(4, 4, 3, padding="valid"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"),
    nn.Conv3d(4, 2, 3, stride=2, padding=1),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("bias_trains", [True, False])
def test_convolution(convolution: nn.Conv2d, bias_trains: bool) -> None:
    stock = copy.deepcopy(convolution).double().requires_grad_(False)
    if stock.bias is not None:
        stock.bias.requires_grad_(bias_trains)
    dims = len(stock.kernel_size)
    for shape in ((2, 4, 9, 8, 7), (4, 9, 8, 7)):  # a batch, and a single one
        x = torch.randn(*shape[: len(shape) - 3 + dims], dtype=torch.float64)
        upstream = torch.randn_like(stock(x))
        _assert_same(_run(_rewrite(stock), x, upstream), _run(stock, x, upstream), 1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_absent_input_is_not_read(convolution: nn.Conv2d, dtype: torch.dtype) -> None:
    """Deterministic mode fills uninitialized memory with NaN, so a kernel that read it would show."""
    stock = copy.deepcopy(convolution).requires_grad_(False).to(dtype)
    x = torch.randn(2, 4, 9, 8, 7)[(..., *[0] * (3 - len(stock.kernel_size)))].to(dtype)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        _assert_same(_run(_rewrite(stock), x), _run(stock, x), 1e-6)
    finally:
        torch.use_deterministic_algorithms(False)


def test_bias_trains_where_the_input_needs_no_gradient() -> None:
    module = _rewrite(nn.Conv2d(3, 5, 3))
    module.weight.requires_grad_(False)
    x = torch.randn(2, 3, 6, 6)
    y = module(x)
    y.backward(upstream := torch.randn_like(y))
    torch.testing.assert_close(module.bias.grad, upstream.sum((0, 2, 3)))


BATCH_NORMS = [
    (nn.BatchNorm1d(4), (6, 4)),
    (nn.BatchNorm1d(4), (3, 4, 5)),
    (nn.BatchNorm2d(4, eps=0.1), (3, 4, 5, 6)),
    (nn.BatchNorm2d(4, affine=False), (3, 4, 5, 6)),
    (nn.BatchNorm3d(4), (2, 4, 3, 2, 5)),
    (nn.SyncBatchNorm(4), (3, 4, 5, 6)),
]


@pytest.mark.parametrize(("batch_norm", "shape"), BATCH_NORMS, ids=str)
@pytest.mark.parametrize("trains", [(), ("bias",), ("weight", "bias"), ("weight",)])
def test_batch_norm(batch_norm: nn.BatchNorm2d, shape: tuple[int, ...], trains: tuple[str, ...]) -> None:
    stock = copy.deepcopy(batch_norm).double().eval()
    for name, parameter in stock.named_parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(name in trains)
    nn.init.normal_(stock.running_mean)
    nn.init.uniform_(stock.running_var, 0.1, 2)
    x = torch.randn(shape, dtype=torch.float64)
    ours = _rewrite(stock)
    ours.train()
    _assert_same(_run(ours, x, x.cos()), _run(stock, x, x.cos()), 1e-12)
    assert torch.equal(ours.running_mean, stock.running_mean)
    assert ours.num_batches_tracked == 0
    assert not ours.training


def test_batch_norm_still_checks_its_input() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        _rewrite(nn.BatchNorm2d(3))(torch.zeros(2, 3))


ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.75)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_activation(activation: nn.ReLU, inplace: bool, dtype: torch.dtype) -> None:
    stock = copy.deepcopy(activation)
    stock.inplace = inplace
    x = torch.randn(3, 5, 7, 11).mul(4).to(dtype)
    x[0, 0, 0, :5] = torch.tensor([0, 6, -0.5, 0.75, -torch.inf])
    for memory in (torch.contiguous_format, torch.channels_last):
        laid = x.to(memory_format=memory)
        upstream = torch.randn_like(x)  # contiguous, whatever the output is
        ours, theirs = _run(_rewrite(stock), laid, upstream), _run(stock, laid, upstream)
        _assert_same(ours, theirs, 0)
        assert ours[0].stride() == theirs[0].stride()
    special = torch.full((70,), torch.nan, dtype=dtype)
    special[::2] = torch.inf
    assert torch.equal(_run(_rewrite(stock), special)[0].nan_to_num(7), stock(special).nan_to_num(7))


def test_inplace_activation_overwrites_its_input() -> None:
    """The block of a pre-activation network whose shortcut takes what an in-place ReLU has overwritten."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.5
            self.relu(x)
            return self.conv(x) + x.square()

    stock = Block().requires_grad_(False)
    ours = copy.deepcopy(stock)
    ours.conv, ours.relu = _rewrite(stock.conv), _rewrite(stock.relu)
    x = torch.randn(2, 4, 6, 6)
    _assert_same(_run(ours, x), _run(stock, x), 1e-6)


def test_inplace_activation_of_a_view() -> None:
    def run(relu: nn.Module) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 12).requires_grad_()
        y = x * 2
        relu(y[3:9])
        (y.square() * torch.arange(12)).sum().backward()
        return y.detach(), x.grad

    for ours, theirs in zip(run(_rewrite(nn.ReLU(inplace=True))), run(nn.ReLU(inplace=True)), strict=True):
        assert torch.equal(ours, theirs)


def test_overwriting_what_autograd_saved_is_still_an_error() -> None:
    x = torch.randn(8, requires_grad=True)
    y = x.exp()  # saves its result
    _rewrite(nn.ReLU(inplace=True))(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _network(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Hardtanh(inplace=inplace),
    ).requires_grad_(False)


def _rewritten(network: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(_rewrite(module) for module in network.eval()))


@pytest.mark.parametrize("inplace", [True, False])
def test_gradient_of_the_gradient(inplace: bool) -> None:
    def penalty(network: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x * 2).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    network, x = _network(inplace), torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(penalty(_rewritten(network), x), penalty(network, x))


def test_gradgradcheck() -> None:
    network = _rewritten(_network(inplace=False)).double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    assert torch.autograd.gradgradcheck(network, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    network = _network()
    for module in (network[1], network[3]):
        module.bias.requires_grad_(True)
    x = torch.randn(4, 3, 9, 9)
    results = []
    for net in (_rewritten(network), network):
        with torch.autocast("cpu", dtype=dtype):
            y = net(x.requires_grad_())
            loss = y.float().square().mean()
        bias = [net[1].bias, net[3].bias]
        results.append([y, *torch.autograd.grad(loss, [x, *bias])])
    ours, theirs = results
    assert ours[0].dtype == dtype
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() <= 0.02 * b.norm()


def test_autocast_keeps_no_copies_of_frozen_weights() -> None:
    network = _rewritten(_network())
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        saved = saved_by_module(network, x, set(network.modules()))
    assert {name for name, size in saved.items() if size} == {"2", "4"}  # the masks


def test_a_backward_inside_autocast_keeps_full_precision() -> None:
    module = _rewrite(nn.Conv2d(3, 4, 3).requires_grad_(False))
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    y = module(x)
    (outside,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(y, x, 2 * y.detach())
    assert torch.equal(inside, outside)


def test_channels_last_is_kept_both_ways() -> None:
    network = _rewritten(_network())
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    y = network(x)
    y.backward(torch.randn_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_recorded_where_nothing_trains() -> None:
    network = _rewritten(_network())
    x = torch.randn(2, 3, 8, 8)
    assert network(x).grad_fn is None
    with torch.no_grad():
        assert network(x.requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 8, 8)).grad_fn is None
