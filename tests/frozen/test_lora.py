"""Adapters against the same product written out with torch's own operators."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen import Lora
from thawkit.frozen.extension import Extended
from thawkit.frozen.lora import LoraLayer, attach
from thawkit.ops.frozen import onednn
from thawkit.ops.frozen.packed import packed_of

LAYERS = [
    (nn.Linear(7, 5), (3, 4, 7)),
    (nn.Linear(7, 5, bias=False), (7,)),
    (nn.Conv1d(4, 6, 5, stride=3, padding=2), (2, 4, 11)),
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 6, 5)),
    (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False), (2, 4, 7, 6)),
    (nn.Conv2d(4, 4, 4, padding="same", padding_mode="circular"), (2, 4, 6, 5)),
    (nn.Conv2d(4, 4, 4, padding="same"), (2, 4, 6, 5)),
    (nn.Conv3d(4, 2, 3, padding=1), (2, 4, 4, 5, 3)),
    (transformers.pytorch_utils.Conv1D(5, 7), (3, 4, 7)),
]


def _adapted(layer: nn.Module, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    attach(layer, "layer", Lora(3, **settings))
    nn.init.normal_(layer.lora_B)
    return layer


def _plain(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    base = layer.stock.forward(layer, x)
    if isinstance(layer, nn.modules.conv._ConvNd):
        low = layer._conv_forward(x, a, None)
        return base + layer.lora_scale * (F.conv1d, F.conv2d, F.conv3d)[b.dim() - 3](low, b)
    return base + layer.lora_scale * F.linear(F.linear(x, a), b)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("settings", [{}, {"alpha": 6}, {"train_a": False}], ids=str)
@pytest.mark.parametrize("thawed", [False, True])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_equals_the_written_out_product(
    layer: nn.Module, shape: tuple[int, ...], thawed: bool, settings: dict[str, object]
) -> None:
    ours = _adapted(layer, **settings)
    for parameter in (ours.weight, ours.bias):
        if parameter is not None:
            parameter.requires_grad_(thawed)
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    wrt = [x, *(p for p in ours.parameters() if p.requires_grad)]
    results = [
        [y.detach(), *torch.autograd.grad(y.sin().sum(), wrt)]
        for y in (ours(x), _plain(ours, x, ours.lora_A, ours.lora_B))
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), results[0][0], rtol=1e-12, atol=1e-12)
    expected = results[0][0]
    ours.detach(merge=True)
    assert type(ours) is type(layer)
    torch.testing.assert_close(ours(x).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train_a", [True, False])
@pytest.mark.parametrize("index", [0, 3])
def test_gradient_of_the_gradient(index: int, train_a: bool) -> None:
    layer, shape = LAYERS[index]
    ours = _adapted(layer, train_a=train_a)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(p for p in ours.parameters() if p.requires_grad))
    assert torch.autograd.gradcheck(lambda x, *_: ours(x.sin()), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: ours(x.sin()), inputs)


def test_a_new_adapter_changes_nothing_and_takes_no_random_numbers(build) -> None:
    model = build("resnet18").eval()
    images = torch.randn(2, 3, 32, 32)
    expected, random = model(images).detach(), torch.get_rng_state()
    thawkit.freeze(model, "lora:4", example=images)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model(images).detach(), expected)
    first = model.layer1[0].conv1.lora_A.detach().clone()
    assert first.std() > 0
    torch.manual_seed(0)  # as build does
    thawkit.freeze(model, "lora:4", example=images)
    assert torch.equal(model.layer1[0].conv1.lora_A, first)
    assert not torch.equal(model.layer1[0].conv2.lora_A, first)
    torch.manual_seed(1)
    thawkit.freeze(model, "lora:4", example=images)
    assert not torch.equal(model.layer1[0].conv1.lora_A, first)


def test_which_layers_and_names(build) -> None:
    model = build("resnet18")
    keys = list(model.state_dict())
    report = thawkit.freeze(model, "lora:2:layer4.*", example=torch.zeros(2, 3, 32, 32))
    adapted = {name for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    convolutions = {n for n, m in model.layer4.named_modules(prefix="layer4") if isinstance(m, nn.Conv2d)}
    assert adapted == convolutions
    new = {f"{name}.lora_{letter}" for name in adapted for letter in "AB"}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == new | {"fc.weight", "fc.bias"}
    assert set(model.state_dict()) == set(keys) | new
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    thawkit.unfreeze(model)
    assert list(model.state_dict()) == keys
    lite0 = build("lite0")
    report = thawkit.freeze(lite0, "lora-fa:2+bias", example=torch.zeros(2, 3, 32, 32))
    assert any("lora-fa:2 does not reach conv_stem" in note for note in report.notes)
    assert not lite0.blocks[1][0].conv_pw.lora_A.requires_grad
    assert lite0.blocks[1][0].bn1.bias.requires_grad
    assert not isinstance(lite0.blocks[1][0].conv_dw, Extended)
    thawkit.freeze(lite0, "lora:2+last:1")
    assert type(lite0.conv_head) is nn.Conv2d
    assert lite0.conv_head.weight.requires_grad


def test_merging_and_dropping(build) -> None:
    model, images = build("small_cnn").eval(), torch.randn(2, 3, 8, 8)
    untouched = {k: v.clone() for k, v in model.state_dict().items()}
    for merge in (False, True):
        thawkit.freeze(model, Lora(2, alpha=4), example=images)
        nn.init.normal_(model[3].lora_B)
        adapted = model(images).detach()
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(clone(images).detach(), adapted)
        fresh = build("small_cnn").eval()
        thawkit.freeze(fresh, "lora:2", example=images)
        fresh[3].lora_scale = 2.0
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh(images).detach(), adapted)
        thawkit.unfreeze(model, merge=merge)
        assert not any(isinstance(m, Extended) for m in model.modules())
        same = all(torch.equal(v, untouched[k]) for k, v in model.state_dict().items())
        assert same is not merge
    torch.testing.assert_close(model(images).detach(), adapted)


def test_saved_bytes(build) -> None:
    """The input of each layer that trains A, and the product A x; with A frozen the product alone."""
    images = torch.zeros(2, 3, 8, 8)
    model = build("small_cnn")
    first, second, pooled = 512 * 4, 256 * 4, 2 * 8 * 4
    low = 4 * 2 * 2 * (64 + 16)  # two channels at 8x8 and at 4x4 for two images
    report = thawkit.freeze(model, "lora:2", example=images)
    assert report.saved_bytes == first + low + second // 32 + pooled
    assert report.saved_bytes_before == 2 * first + low + 2 * second + pooled
    report = thawkit.freeze(model, "lora-fa:2", example=images)
    assert report.saved_bytes == first // 32 + low + second // 32 + pooled

    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    report = thawkit.freeze(model, "lora:2", example=torch.zeros(6, 8))
    assert report.saved_bytes == 4 * 6 * (16 + 16 + 2 + 2)  # the input of the second and third, two products
    report = thawkit.freeze(model, "lora-fa:2", example=torch.zeros(6, 8))
    assert report.saved_bytes == 4 * 6 * (16 + 2 + 2)


@pytest.mark.parametrize("policy", ["lora:2", "lora-fa:2+bias"])
def test_models_train_as_with_written_out_products(build, gradients, policy: str) -> None:
    models = {
        "resnet18": lambda: build("resnet18"),
        "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3),
    }
    for make in models.values():
        torch.manual_seed(0)
        model = make().double()
        thawkit.freeze(model, policy, example=torch.zeros(2, 3, 32, 32, dtype=torch.float64))
        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        assert len(layers) > 8
        for layer in layers:
            nn.init.normal_(layer.lora_B, 0, 0.02)
        plain = copy.deepcopy(model)
        for layer in plain.modules():
            if isinstance(layer, LoraLayer):
                layer.__class__ = type("Plain", (layer.stock,), {"stock": layer.stock, "forward": _forward})
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        ours, theirs = gradients(model, images), gradients(plain, images)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert (ours[key] - value).norm() <= 1e-12 * value.norm().clamp_min(1e-30), key


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    return _plain(self, x, self.lora_A, self.lora_B)


def test_gpt2() -> None:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    tokens = {"input_ids": torch.arange(10).view(2, 5) + 2}
    expected = model(**tokens).logits.detach()
    report = thawkit.freeze(model, "lora:2:*attn*", example=tokens)
    assert type(model.transformer.h[0].attn.c_attn).__name__ == "LoraConv1D"
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "FrozenConv1D"
    torch.testing.assert_close(model(**tokens).logits.detach(), expected)
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    nn.init.normal_(model.transformer.h[0].attn.c_attn.lora_B)
    clone = pickle.loads(pickle.dumps(model))
    changed = model(**tokens).logits.detach()
    torch.testing.assert_close(clone(**tokens).logits.detach(), changed)
    thawkit.unfreeze(model)
    torch.testing.assert_close(model(**tokens).logits.detach(), changed)


def test_compiled_exported_scripted_and_checkpointed(build, gradients) -> None:
    model, images = build("small_cnn").eval(), torch.randn(2, 3, 8, 8)
    thawkit.freeze(model, "lora:2", example=images)
    nn.init.normal_(model[3].lora_B)
    expected = gradients(model, images)
    for other in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        lambda x: checkpoint(model, x, use_reentrant=False),
    ):
        logits = other(images)
        loss = torch.logsumexp(logits.double(), 1).sum() - logits[:, 0].sum()
        (part,) = torch.autograd.grad(loss, [model[3].lora_A])
        torch.testing.assert_close(part, expected["3.lora_A"])
    for other in (torch.export.export(model, (images,)).module(), torch.jit.script(model)):
        torch.testing.assert_close(other(images).detach(), expected["logits"])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_autocast(build, memory: torch.memory_format) -> None:
    model, images = build("small_cnn"), torch.randn(2, 3, 8, 8).to(memory_format=memory)
    thawkit.freeze(model, "lora:2", example=images)
    nn.init.normal_(model[3].lora_B)
    loss = model(images).square().sum()
    exact = torch.autograd.grad(loss, [model[3].lora_A, model[3].lora_B])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = logits.float().square().sum()
    assert logits.dtype == torch.bfloat16
    for ours, truth in zip(torch.autograd.grad(loss, [model[3].lora_A, model[3].lora_B]), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).norm() <= 0.05 * truth.norm()


def test_settings() -> None:
    with pytest.raises(ThawkitError, match="rank: expected an integer of at least 1, got 0"):
        Lora(0)
    assert str(Lora(4, alpha=8, modules="a.*", train_a=False)) == "lora-fa:4, alpha=8:a.*"


def test_a_name_that_is_taken(build) -> None:
    model = build("small_cnn")
    model[3].lora_A = 1
    with pytest.raises(ThawkitError, match="a 'lora_A' of its own"):
        thawkit.freeze(model, "lora:2")
    assert type(model[0]) is nn.Conv2d
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.skipif(not onednn.available(), reason="torch's oneDNN operators do not run here")
@pytest.mark.parametrize("layer", [nn.Linear(24, 40), transformers.pytorch_utils.Conv1D(40, 24)], ids=str)
def test_the_frozen_product_runs_on_a_weight_laid_out_once(layer: nn.Module) -> None:
    ours = _adapted(layer).float()
    results = []
    for run in (ours, lambda x: _plain(ours, x, ours.lora_A, ours.lora_B)):
        x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = run(x)
        wanted = torch.autograd.grad(y.square().sum(), [x, ours.lora_A, ours.lora_B])
        results.append((y, *wanted))
    assert len(packed_of(ours)._layouts) == 2  # for the product and for its gradient
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        ours.weight.mul_(2)
    torch.testing.assert_close(ours(x), _plain(ours, x, ours.lora_A, ours.lora_B), rtol=1e-5, atol=1e-5)


def test_the_product_of_strided_inputs_may_be_written_to() -> None:
    """As swin_v2's residual sums of windows do; torch's own product of them is a view."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 8).transpose(1, 2)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    stock = copy.deepcopy(model)
    thawkit.freeze(model, "lora:2", example=x)
    torch.testing.assert_close(model[0](x).mul_(2), stock[0](x) * 2)
    model[0](x).mul_(2).sum().backward()


def _written_out(layer: nn.Module, x: Tensor) -> Tensor:
    return _plain(layer, x, layer.lora_A, layer.lora_B)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.lora_A.mul_(2),
        lambda layer: layer.lora_B.data.neg_(),
        lambda layer: layer.weight.add_(1),
        lambda layer: setattr(layer, "lora_B", nn.Parameter(layer.lora_B * 3)),
        lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True),
        lambda layer: layer.float(),
        lambda layer: setattr(layer, "lora_scale", 0.0),
    ],
    ids=("A", "B by data", "weight", "new B", "loaded", "dtype", "scale"),
)
def test_a_merged_convolution_is_merged_anew(change) -> None:
    layer = _adapted(nn.Conv2d(4, 6, 3, padding=1))
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x), _written_out(layer, x), rtol=1e-12, atol=1e-12)
        assert packed_of(layer).nbytes() == layer.weight.nbytes
        change(layer)
        x = x.to(layer.weight.dtype)
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(layer(x), _written_out(layer, x), rtol=tolerance, atol=tolerance)


def test_training_and_copies_keep_no_merged_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
    x = torch.randn(2, 3, 4, 4)
    report = thawkit.freeze(model, "lora:2", example=x)
    assert report.packed_bytes == 0
    nn.init.normal_(model[0].lora_B)
    trained = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained)
    assert report.packed_bytes == 0  # of the time of freezing
    assert packed_of(model[0]).nbytes() == model[0].weight.nbytes
    model(x)
    assert packed_of(model[0]).nbytes() == 0

    thawkit.unfreeze(model, merge=False)
    thawkit.freeze(model, "lora:2", example=x, copies=False)
    nn.init.normal_(model[0].lora_B)
    trained = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained)
    assert packed_of(model[0]).nbytes() == 0


def test_nothing_is_merged_in_half_precision_or_under_autocast() -> None:
    layer = _adapted(nn.Conv2d(4, 6, 3, padding=1))
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.bfloat16()(x.bfloat16())
        assert packed_of(layer).nbytes() == 0
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x.float())
        assert packed_of(layer).nbytes() == 0
