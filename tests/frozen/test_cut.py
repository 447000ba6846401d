"""Where the frozen prefix ends, and that prefix and rest are the model."""

from __future__ import annotations

import random

import pytest
import timm
import torch
import torchvision
from torch import nn

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen.cut import NoCutError, find_cut

pytestmark = pytest.mark.usefixtures("one_thread")


def _vit(dropout: float = 0.0) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=4, dropout=dropout)


def _bert(dropout: float = 0.0) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def _googlenet() -> nn.Module:
    return torchvision.models.googlenet(num_classes=5, init_weights=False)


def _images(size: int = 64) -> torch.Tensor:
    return torch.randn(4, 3, size, size)


def _tokens() -> dict[str, torch.Tensor]:
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[1, 8:] = 0
    return {"input_ids": torch.randint(5, 99, (4, 12)), "attention_mask": mask}


CASES = {
    "resnet head": ("resnet18", "head", "fc", [(512,)]),
    "resnet block": ("resnet18", "last:1", "layer4.1.conv1", [(512, 2, 2)]),
    "resnet adapters": ("resnet18", "lora:2:layer4*", "layer4.0.conv1", [(256, 4, 4)]),
    "resnet shift": ("resnet18", "layer4.1.bn1.bias", "layer4.1.bn1", [(512, 2, 2)]),
    "auxiliary heads": (_googlenet, "head", "aux1.dropout", [(1024,)] * 3),
    "lite0 head": ("lite0", "head", "classifier", [(1280,)]),
    "vit head": (_vit, "head", "heads.head", [(32,)]),
    "vit block": (_vit, "last:1", "encoder.layers.encoder_layer_2.ln_1", [(17, 32)]),
    "bert head": (_bert, "head", "classifier", [(32,)]),
    "bert block": (_bert, "last:1", "bert.encoder.layer.2.attention.self.query", [(12, 32), (1, 12, 12)]),
    "dropout comes first": (lambda: _vit(0.1), "head", "encoder.dropout", [(17, 32)]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_gives_from_the_features_what_the_model_gives(build, case: str) -> None:
    make, policy, at, shapes = CASES[case]
    torch.manual_seed(0)
    model = build(make) if isinstance(make, str) else make()
    example = _tokens() if make is _bert else _images(32 if "vit" in case or "dropout" in case else 64)
    thawkit.freeze(model, policy, example=example)
    model.train()
    cut = find_cut(model, example)
    assert cut.at.startswith(repr(at))
    assert [feature.shape for feature in cut.features] == shapes
    torch.manual_seed(3)
    batch = _tokens() if make is _bert else torch.randn_like(example)
    features = [f[1:] for f in cut.prefix(batch)]  # another batch size than any seen
    part = {k: v[1:] for k, v in batch.items()} if isinstance(batch, dict) else batch[1:]
    torch.manual_seed(4)
    whole = model(**part) if isinstance(part, dict) else model(part)
    torch.manual_seed(4)
    rest = cut.rest(features)
    whole, rest = (out if isinstance(out, torch.Tensor) else out.logits for out in (whole, rest))
    torch.testing.assert_close(rest, whole, rtol=1e-5, atol=1e-5)  # the prefix ran with another batch size
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(rest.square().sum(), parameters),
        torch.autograd.grad(whole.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.eval()
    with torch.no_grad():
        whole, rest = (model(**part) if isinstance(part, dict) else model(part)), cut.rest(features)
    whole, rest = (out if isinstance(out, torch.Tensor) else out.logits for out in (whole, rest))
    torch.testing.assert_close(rest, whole, rtol=1e-5, atol=1e-5)


def test_no_module_of_the_prefix_runs(build) -> None:
    model = build("resnet18")
    thawkit.freeze(model, "last:1")
    model.train()
    cut = find_cut(model, _images())
    features = cut.prefix(_images())
    ran = []
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            forward = module.forward
            vars(module)["forward"] = lambda *x, m=module, f=forward: ran.append(names[m]) or f(*x)
    cut.rest(features)
    assert ran == ["layer4.1.conv1", "layer4.1.conv2", "fc"]


def test_a_forward_leaves_no_trace(build) -> None:
    model = build("resnet18")
    thawkit.freeze(model, "head")
    model.train()
    before = [(type(m), m.training, sorted(vars(m))) for m in model.modules()]
    images = _images()
    state = torch.get_rng_state()
    cut = find_cut(model, images)
    cut.rest(cut.prefix(images))
    assert before == [(type(m), m.training, sorted(vars(m))) for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_moving_statistics_are_no_prefix(build) -> None:
    model = build("resnet18").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    assert find_cut(model, _images()).at.startswith("'bn1'")


class _Own(nn.Module):
    """A prefix and a head, between which ``middle`` says what happens in the model's own code."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8, affine=False, track_running_stats=False)
        self.body.requires_grad_(False)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self, x, self.body(x)))


def _used_twice(model, x, h):
    return torch.cat([h + model.head(h).mean(1, keepdim=True), h.tanh()], 1)[:, 4:12]


def _in_place(model, x, h):
    h += 1
    return nn.functional.relu_(h)


def _written(model, x, h):
    h[:, 0] = 0
    return h


@pytest.mark.parametrize(
    ("middle", "shapes"),
    [
        (lambda model, x, h: h.relu() if h.mean() > 100 else h.tanh(), [(8,), (8,)]),
        (lambda model, x, h: model.norm(h), [(8,)]),
        (lambda model, x, h: h * torch.rand(()), [(8,)]),
        (lambda model, x, h: h * random.random(), [(8,)]),
        (lambda model, x, h: torch.cat([h[:, :4], x[:, :4]], 1).relu(), [(8,)]),
        (lambda model, x, h: torch.from_numpy(h.numpy() * 2), [(8,)]),
        (_in_place, [(8,)]),
        (_written, [(8,)]),
        (_used_twice, [(8,)]),
    ],
    ids=[
        "branch",
        "batch statistics",
        "random",
        "python's random",
        "cat",
        "numpy",
        "in place",
        "written to",
        "used twice",
    ],
)
def test_own_code_between_prefix_and_head(middle, shapes) -> None:
    torch.manual_seed(0)
    model = _Own(middle).train()
    x = torch.randn(5, 6)
    try:
        cut = find_cut(model, x)
    except NoCutError:
        assert middle.__code__.co_names[-1:] in (("random",),)
        return
    features = cut.prefix(x)
    kept = [f.clone() for f in features]
    assert [f.shape for f in cut.features] == shapes[: len(cut.features)]
    for _ in range(2):
        torch.manual_seed(1)
        random.seed(1)
        whole = model(x)
        torch.manual_seed(1)
        random.seed(1)
        assert torch.equal(cut.rest(features), whole)
    assert all(map(torch.equal, features, kept))


class _Counting(nn.Module):
    """Another path at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head((self.body if self.calls % 2 else self.other)(x).relu() + self.calls)


def test_where_there_is_no_cut_the_reason_is_said(build) -> None:
    model = _Counting()
    thawkit.freeze(model, "head", example=torch.randn(2, 6))
    with pytest.raises(NoCutError):
        find_cut(model, torch.randn(2, 6))
    model = build("resnet18")
    thawkit.freeze(model, "all")
    with pytest.raises(NoCutError, match="no frozen layer comes before 'conv1', which trains"):
        find_cut(model, _images())
    thawkit.freeze(model, "bias")  # the first convolution runs as one with the shift after it
    with pytest.raises(NoCutError, match="no frozen layer comes before 'bn1', which trains"):
        find_cut(model, _images())
    with pytest.raises(NoCutError, match=r"example: expected tensors, got \['NoneType'\]"):
        find_cut(model, None)
    with pytest.raises(ThawkitError, match="at least one sample"):
        find_cut(model, torch.zeros(0, 3, 64, 64))


class _Functional(nn.Module):
    """Calls functions itself, for which freezing puts a mode in force; ``between`` is called on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 4, 3)
        self.between = lambda: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(nn.functional.relu(self.norm(self.conv(x))), 3)
        self.between()
        return self.head(nn.functional.dropout(x.view(len(x), -1), 0.5, self.training))


def test_functions_that_the_model_calls_itself() -> None:
    torch.manual_seed(0)
    model = _Functional().eval()
    thawkit.freeze(model, "head", example=_images(8))
    cut = find_cut(model, _images(8))
    assert cut.at.startswith("the _Functional's own code, which is random")
    assert [feature.shape for feature in cut.features] == [(32,)]
    assert not model.training
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("calls", range(0, 8, 2))
def test_whatever_stops_a_forward_leaves_no_trace(error: type[BaseException], calls: int) -> None:
    """It may stop while a forward is recorded, run in part, or compared."""
    model = _Functional().eval()
    thawkit.freeze(model, "head", example=_images(8))
    left = iter(range(calls))

    def stop() -> None:
        if next(left, None) is None:
            raise error

    model.between = stop
    before = [(type(m), m.training, sorted(vars(m))) for m in model.modules()]
    with pytest.raises((error, NoCutError)):
        find_cut(model, _images(8))
    assert before == [(type(m), m.training, sorted(vars(m))) for m in model.modules()]
    assert torch.overrides._get_current_function_mode_stack() == []
    model.between = lambda: None
    assert model(_images(8)).requires_grad


def test_a_timm_model_with_random_depth(build) -> None:
    model = timm.create_model("convnext_atto", num_classes=3, drop_path_rate=0.3)
    thawkit.freeze(model, "head", example=_images())
    assert "random" in find_cut(model, _images()).at


MIXES = {
    "a largest value": lambda y: y / y.amax().clamp(min=1.0),
    "a threshold on the mean": lambda y: y * (y.mean() > 0.3),
    "a sort": lambda y: y[y[:, 0, 0, 0].argsort()],
    "a mean over samples": lambda y: y - y.mean(0),
    "a mean that matters where it is large": lambda y: y * ((y - y.mean(0)).abs() < 12.0),
}


@pytest.mark.parametrize("mix", MIXES)
def test_what_mixes_samples_is_not_kept(mix: str) -> None:
    """Also where samples of one size would not show it."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = MIXES[mix](self.a(x).relu())
            return self.head(self.b(y).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Mixes(), torch.randn(4, 3, 8, 8)
    thawkit.freeze(model, "head")
    cut = find_cut(model, images)
    for factor in (3, 30):
        strong = torch.cat([images[:1], factor * images[1:2] + 2, -factor * images[2:3]])
        together, alone = cut.prefix(strong), cut.prefix(strong[:1])
        for kept, single in zip(together, alone, strict=True):
            torch.testing.assert_close(kept[:1], single)
        torch.testing.assert_close(cut.rest(together), model(strong), rtol=1e-4, atol=1e-5)
