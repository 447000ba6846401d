from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen.policy import trainable_names

HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.resnet18()


def _names(model: nn.Module, kind: type, own: str = "") -> set[str]:
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, kind)]
    return {f"{n}.{p}" for n, m in modules for p, _ in m.named_parameters(recurse=False) if own in ("", p)}


def test_named_policies(resnet: nn.Module) -> None:
    names = {n for n, _ in resnet.named_parameters()}
    norms = _names(resnet, nn.BatchNorm2d)
    assert trainable_names(resnet, "head") == HEAD
    assert trainable_names(resnet, "all") == names
    assert trainable_names(resnet, "norm") == HEAD | norms
    assert trainable_names(resnet, "bias") == HEAD | {n for n in norms if n.endswith("bias")}
    assert trainable_names(resnet, "last:1") == HEAD | {n for n in names if n.startswith("layer4.1.")}
    assert trainable_names(resnet, "last:3") == HEAD | {
        n for n in names if n.startswith(("layer4.", "layer3.1."))
    }


def test_globs_mean_what_they_say(resnet: nn.Module) -> None:
    names = [name for name, _ in resnet.named_parameters()]
    scales = {n for n in names if n.endswith(".weight") and ".bn" in n}
    assert trainable_names(resnet, "layer4.*") == {n for n in names if n.startswith("layer4.")}
    assert trainable_names(resnet, "*.bn?.weight") == scales
    assert trainable_names(resnet, "conv1.weight") == {"conv1.weight"}
    assert trainable_names(resnet, " head + conv1.* ") == HEAD | {"conv1.weight"}
    last, norm = trainable_names(resnet, "last:1"), trainable_names(resnet, "norm")
    assert trainable_names(resnet, "last:1+norm") == last | norm


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("heads", "expected head, last:K, norm, bias, all.*'heads'"),
        ("", "expected head.*got ''"),
        ("head+", "expected head.*got '' in 'head\\+'"),
        (None, "expected head.*got None"),
        ("layer4", "'layer4' is a module.*'layer4\\.\\*'"),
        ("layer5.*", "'layer5\\.\\*' matches no parameter.*'conv1.weight'.*layer1, layer2"),
        ("last:9", "K from 1 to 8.*'last:9'.*layer1.0 to layer4.1"),
        ("last:0", "K from 1 to 8"),
        ("last:-1", "K from 1 to 8"),
        ("last:two", "K from 1 to 8"),
    ],
)
def test_what_is_no_policy(resnet: nn.Module, train: str, message: str) -> None:
    flags = [p.requires_grad for p in resnet.parameters()]
    with pytest.raises(ThawkitError, match=message):
        thawkit.freeze(resnet, train)
    assert [p.requires_grad for p in resnet.parameters()] == flags


@pytest.mark.parametrize("train", ["last:1", "lisa:1"])
def test_blocks_of_a_model_that_has_none(train: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))  # all of it is the head
    with pytest.raises(ThawkitError, match=f"a policy that counts no blocks, got '{train}'.*has 0 blocks"):
        thawkit.freeze(model, train)


def test_biases_and_norms_of_transformers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))
    assert trainable_names(model, "bias") == {n for n, _ in model.named_parameters() if "bias" in n} | {
        "2.weight"
    }
    assert "1.self_attn.in_proj_bias" in trainable_names(model, "bias")
    norms = {f"1.norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert trainable_names(model, "norm") == norms | {"2.weight", "2.bias"}


def test_tied_parameters_train_under_either_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    thawkit.freeze(model, "1.weight")
    assert model[0].weight.requires_grad
    assert not model[1].bias.requires_grad


def test_bitfit_is_bias(resnet: nn.Module) -> None:
    assert trainable_names(resnet, "bitfit") == trainable_names(resnet, "bias")


def test_a_third_of_the_blocks(resnet: nn.Module) -> None:
    names = [name for name, _ in resnet.named_parameters()]
    thirds = [("layer1.0.", "layer1.1."), ("layer2.0.", "layer2.1.", "layer3.0."), None]
    thirds[2] = ("layer3.1.", "layer4.0.", "layer4.1.")
    for which, prefixes in zip(("first", "middle", "last"), thirds, strict=True):
        assert trainable_names(resnet, f"surgical:{which}") == HEAD | {
            name for name in names if name.startswith(prefixes)
        }
    with pytest.raises(
        ThawkitError, match=r"surgical:last and at least 3 blocks, got 'surgical:second'.*has 8"
    ):
        trainable_names(resnet, "surgical:second")
    two = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ThawkitError, match=r"at least 3 blocks.*has 2 blocks, 0 to 1"):
        trainable_names(two, "surgical:first")


def test_functions_and_lists(resnet: nn.Module) -> None:
    def is_vector(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 1

    vectors = {name for name, p in resnet.named_parameters() if p.dim() == 1}
    assert trainable_names(resnet, is_vector) == vectors
    assert trainable_names(resnet, ["head", is_vector]) == vectors | HEAD
    report = thawkit.freeze(torchvision.models.resnet18(), ["head", is_vector])
    assert report.train == "head+is_vector"
    with pytest.raises(
        ThawkitError, match=r"selects none of the 62 parameters.*'conv1.weight' and 'fc.bias'"
    ):
        trainable_names(resnet, lambda name, parameter: False)
    with pytest.raises(ThawkitError, match="a function of name and parameter, got 3"):
        trainable_names(resnet, 3)
    with pytest.raises(ThawkitError, match="got an empty list"):
        trainable_names(resnet, [])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("channels:1.5", "channels:FRACTION.*between 0 and 1, got 'channels:1.5'"),
        ("channels:half", "channels:FRACTION.*got 'channels:half'"),
        ("channels:0.5:in:norm:layer1.*:more", "channels:FRACTION"),
        ("channels:0.5:encoder.*", "names like 'encoder.\\*'; ResNet has 20 layers, conv1 to layer4.1.conv2"),
        ("lora:0", "lora:R.*rank R of at least 1, got 'lora:0'"),
        ("lora-fa:x", "lora:R.*got 'lora-fa:x'"),
        ("lora:4:encoder.*", "ResNet has 20 layers"),
        ("lora:4:layer1.*+channels:0.5:layer1.0.conv?", "channels and adapters of 'layer1.0.conv1'"),
    ],
)
def test_what_is_no_extension(resnet: nn.Module, train: str, message: str) -> None:
    with pytest.raises(ThawkitError, match=message):
        trainable_names(resnet, train)
