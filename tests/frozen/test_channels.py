"""Training a subset of a weight's channels, against the whole weight training with a masked gradient."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen import Channels
from thawkit.frozen.channels import ChannelLayer, attach, choose
from thawkit.frozen.extension import Extended
from thawkit.frozen.measure import saved_by_module

LAYERS = [
    (nn.Linear(7, 5), (3, 4, 7)),
    (nn.Linear(7, 5, bias=False), (7,)),
    (nn.Conv1d(4, 6, 5, stride=3, padding=2), (2, 4, 11)),
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 6, 5)),
    (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, bias=False), (2, 4, 7, 6)),
    (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 5)),
    (nn.Conv2d(4, 4, 4, padding="same", padding_mode="circular"), (2, 4, 6, 5)),
    (nn.Conv2d(4, 4, 4, padding="same"), (2, 4, 6, 5)),
    (nn.Conv3d(4, 2, 3, padding=1), (2, 4, 4, 5, 3)),
    (transformers.pytorch_utils.Conv1D(5, 7), (3, 4, 7)),
]


def _pair(layer: nn.Module, settings: Channels) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer of which channels train, its stock form, and the mask of the weight's trainable entries."""
    torch.manual_seed(0)
    stock = copy.deepcopy(layer).double()
    for parameter in stock.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(stock)
    choice = choose(ours, settings)
    assert choice is not None
    attach(ours, choice)
    mask = torch.zeros_like(stock.weight).index_fill_(ours.weight_dim(), ours.channel_of_weight, 1)
    return ours, stock, mask


def _gradients(layer: nn.Module, x: Tensor, weight: str) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    wrt = [x, getattr(layer, weight), *([layer.bias] if layer.bias is not None else [])]
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), wrt)]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dim", ["in", "out"])
@pytest.mark.parametrize("by", ["even", "norm"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_equals_a_masked_gradient(layer: nn.Module, shape: tuple[int, ...], by: str, dim: str) -> None:
    ours, stock, mask = _pair(layer, Channels(0.5, dim, by))
    with torch.no_grad():  # the optimizer moved the slice
        ours.weight_channels.add_(1)
        stock.weight.add_(mask)
    x = torch.randn(shape, dtype=torch.float64)
    got, expected = _gradients(ours, x, "weight_channels"), _gradients(stock, x, "weight")
    assert got[2].numel() == mask.sum()
    expected[2] = expected[2].index_select(ours.weight_dim(), ours.channel_of_weight)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.state_dict()["weight"], stock.weight)


@pytest.mark.parametrize("dim", ["in", "out"])
@pytest.mark.parametrize("index", [0, 3, 6])
def test_gradient_of_the_gradient(index: int, dim: str) -> None:
    layer, shape = LAYERS[index]
    ours, _, _ = _pair(layer, Channels(0.5, dim))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def forward(x: Tensor, part: Tensor) -> Tensor:
        assert part is ours.weight_channels
        return ours(x.sin())

    assert torch.autograd.gradcheck(forward, (x, ours.weight_channels))
    assert torch.autograd.gradgradcheck(forward, (x, ours.weight_channels))


def test_which_channels() -> None:
    layer = nn.Linear(10, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 5, 2, 5, 3, 9, 0, 0, 0, 1]).expand(4, -1))
    assert choose(layer, Channels(0.5)).of_input == (0, 2, 4, 6, 8)
    assert choose(layer, Channels(0.25)).of_input == (0, 3, 6)
    assert choose(layer, Channels(0.01)).of_input == (0,)
    assert choose(layer, Channels(0.99)) is None
    assert choose(layer, Channels(0.3, by="norm")).of_input == (1, 3, 5)
    grouped = choose(nn.Conv2d(8, 8, 3, groups=2), Channels(0.5))
    assert (grouped.of_weight, grouped.of_input) == ((0, 2), (0, 2, 4, 6))
    depthwise = choose(nn.Conv2d(4, 8, 3, groups=4), Channels(0.5))
    assert (depthwise.of_weight, depthwise.of_input, depthwise.groups) == ((0, 1, 4, 5), (0, 2), 2)


def test_models_equal_a_masked_gradient(build, gradients) -> None:
    for name in ("resnet18", "lite0"):
        for policy in ("channels:0.5", "channels:0.25:out+bias"):
            model, plain = build(name).double(), build(name).double()
            report = thawkit.freeze(model, policy)
            names = {n for n, p in model.named_parameters() if p.requires_grad}
            for n, p in plain.named_parameters():
                p.requires_grad_(n in names or f"{n}_channels" in names)
            for m in (model, plain):
                m.eval()
            images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
            got, expected = gradients(model, images), gradients(plain, images)
            assert report.trainable == sum(v.numel() for k, v in got.items() if k != "logits")
            for key, value in got.items():
                whole = expected[key.removesuffix("_channels")]
                if key.endswith("_channels"):
                    layer = model.get_submodule(key.removesuffix(".weight_channels"))
                    whole = whole.index_select(layer.weight_dim(), layer.channel_of_weight)
                assert (value - whole).norm() <= 1e-12 * whole.norm().clamp_min(1e-30), key


@pytest.mark.parametrize("dim", ["in", "out"])
def test_saved_bytes(build, dim: str) -> None:
    """Each distinct input once, by its share, and of ReLUs whose result is not kept a bit an element."""
    report = thawkit.freeze(build("resnet18"), f"channels:0.5:{dim}", example=torch.zeros(2, 3, 64, 64))
    side = 64 // 4
    image = 2 * 3 * 64 * 64 * 4
    stem = 2 * 64 * 32 * 32 * 4
    pool = stem // 32 + stem // 4 // 4 // 2  # a bit an element of the ReLU, four bits an element pooled
    sizes = [2 * c * (side // s) ** 2 * 4 for c, s in ((64, 1), (128, 2), (256, 4), (512, 8))]
    if dim == "in":
        halves = [sizes[0], *sizes[:3], *(size for size in sizes for _ in range(3))]  # a shortcut's is shared
        expected = pool + sum(halves) // 2 + sum(4 * size for size in sizes) // 32 + image // 3 * 2
    else:
        # The last block's ReLU is called twice, and nobody keeps its second result: bits for both calls.
        expected = pool + sizes[0] + sum(4 * size for size in sizes) - sizes[-1] + 2 * sizes[-1] // 32
    head = 2 * 512 * 4
    assert report.saved_bytes == expected + head
    assert report.saved_bytes_before > 1.5 * report.saved_bytes


@pytest.mark.parametrize("policy", ["channels:0.5", "channels:0.25:out:norm"])
def test_training_moves_the_chosen_channels_and_nothing_else(build, policy: str) -> None:
    model = build("small_cnn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    thawkit.freeze(model, policy, example=torch.zeros(2, 3, 8, 8))
    layer = model[3]
    chosen, dim = layer.channel_of_weight.clone(), layer.weight_dim()
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.5
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert optimizer.state[layer.weight_channels]["exp_avg"].shape == layer.weight_channels.shape
    after = {k: v.clone() for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in after.items()} == shapes
    moved = (after["3.weight"] - before["3.weight"]).abs().sum([d for d in range(4) if d != dim]).nonzero()
    assert moved.flatten().tolist() == chosen.tolist()
    thawkit.unfreeze(model)
    assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items())
    assert not any(isinstance(m, Extended) for m in model.modules())
    assert {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()} == set(shapes)


def test_state_dicts_copies_and_pickles(build) -> None:
    model, other = build("small_cnn"), build("small_cnn")
    images = torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "channels:0.5", example=images)
    with torch.no_grad():
        model[3].weight_channels.mul_(3)
        expected = model(images)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(images).detach(), expected)
        clone[3].weight_channels.data.zero_()
        assert not torch.equal(clone(images).detach(), expected)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(thawkit.freeze(other, "norm") and other(images).detach(), expected)
    fresh = build("small_cnn")
    thawkit.freeze(fresh, "channels:0.5", example=images)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[3].weight_channels, model[3].weight_channels)
    assert torch.equal(fresh(images).detach(), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight_channels.add_(1),
        lambda layer: layer.weight_channels.data.neg_(),
        lambda layer: layer.weight.zero_(),  # the slice goes over it
        lambda layer: setattr(layer, "weight_channels", nn.Parameter(layer.weight_channels * 3)),
        lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True),
        lambda layer: layer.float(),
    ],
    ids=("slice", "slice by data", "weight", "new slice", "loaded", "dtype"),
)
def test_the_slice_is_written_anew_where_it_changed(change) -> None:
    layer, _, _ = _pair(nn.Conv2d(4, 6, 3, padding=1), Channels(0.5))
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x), layer._conv_forward(x, layer.whole(), layer.bias))
        change(layer)
        x = x.to(layer.weight.dtype)
        torch.testing.assert_close(layer(x), layer._conv_forward(x, layer.whole(), layer.bias))


def test_compiled_exported_scripted_and_checkpointed(build, gradients) -> None:
    model, images = build("small_cnn").eval(), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "channels:0.5", example=images)
    expected = gradients(model, images)
    for other in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        lambda x: checkpoint(model, x, use_reentrant=False),
    ):
        logits = other(images)
        loss = torch.logsumexp(logits.double(), 1).sum() - logits[:, 0].sum()
        (part,) = torch.autograd.grad(loss, [model[3].weight_channels])
        torch.testing.assert_close(part, expected["3.weight_channels"])
    for other in (torch.export.export(model, (images,)).module(), torch.jit.script(model)):
        torch.testing.assert_close(other(images).detach(), expected["logits"])


def test_overwriting_the_slice_before_the_backward_is_an_error() -> None:
    ours, _, _ = _pair(nn.Linear(4, 4), Channels(0.5))
    y = ours(torch.randn(2, 4, dtype=torch.float64, requires_grad=True))
    with torch.no_grad():
        ours.weight_channels.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    thawkit.freeze(model, "channels:0.5")
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[1].weight_channels.grad.dtype == torch.float32


def test_stays_out_of_what_reads_weights_directly() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)).eval()
    for policy in ("channels:0.5", "lora:2"):
        report = thawkit.freeze(model, policy)
        assert any("self_attn" in note and "does not reach" in note for note in report.notes)
        assert "self_attn" in str(report)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("lora_B", "weight_channels")):
                    parameter.add_(0.3)
        x = torch.randn(3, 5, 8)
        expected = model(x).detach()
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)
        thawkit.unfreeze(model)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)
        assert model[1].layers[0].activation_relu_or_gelu == 1
        assert model[1].use_nested_tensor


def test_tied_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    report = thawkit.freeze(model, "channels:0.5")
    assert [isinstance(m, ChannelLayer) for m in model] == [False, True, False, False]
    assert report.notes == ("channels:0.5 does not reach 0, 2",)


def test_settings() -> None:
    for wrong in ({"fraction": 0.0}, {"fraction": 0.5, "dim": "both"}, {"fraction": 0.5, "by": "size"}):
        with pytest.raises(ThawkitError, match=f"{list(wrong)[-1]}: expected"):
            Channels(**wrong)
    assert str(Channels(0.5, "out", "norm", "a.*")) == "channels:0.5:out:norm:a.*"


def test_vision_transformer_saves_less() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    report = thawkit.freeze(model, "channels:0.5:encoder.*", example=x)
    tokens, width, hidden = 2 * 17, 32, 64
    halves = 2 * 4 * tokens * (width + hidden) // 2  # two layers of float32
    head = tokens * width * 4  # its input is computed again from that of the last normalization
    assert report.saved_bytes_before - report.saved_bytes == halves + head
    assert saved_by_module(model, x, set()).total() == report.saved_bytes


def test_an_input_that_is_written_to_between_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = (
                nn.Linear(*sizes) for sizes in ((6, 8), (8, 4), (8, 4), (4, 2))
            )
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.a(x)
            x = x.mul_(3) if self.inplace else x * 3  # the stock layer would not allow it
            return self.head(y + self.b(x))

    torch.manual_seed(0)
    plain = Twice(False).double()
    model = Twice(True).double()
    model.load_state_dict(plain.state_dict())
    thawkit.freeze(model, [Channels(0.5, modules="[ab]"), "stem.bias"])
    x = torch.randn(5, 6, dtype=torch.float64)
    for net in (model, plain):
        net(x).square().sum().backward()
    for layer in ("a", "b"):
        ours, theirs = model.get_submodule(layer), plain.get_submodule(layer)
        whole = theirs.weight.grad.index_select(1, ours.channel_of_weight)
        torch.testing.assert_close(ours.weight_channels.grad, whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(model.stem.bias.grad, plain.stem.bias.grad, rtol=1e-12, atol=1e-13)
