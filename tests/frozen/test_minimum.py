"""Mobile networks: the exact minimum, derived by hand, and what a frozen one saves."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import SqueezeExcitation

import thawkit

IMAGES = torch.zeros(2, 3, 64, 64)
FLOAT = 4


def _elements(model: nn.Module, images: Tensor) -> tuple[Counter[str], Counter[str]]:
    """Elements of the first input and of the output of each module."""
    ins: Counter[str] = Counter()
    outs: Counter[str] = Counter()
    for name, module in model.named_modules():

        def count(_: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
            ins[name], outs[name] = args[0].numel(), y.numel()

        module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(images)
    return ins, outs


def _mobilenet_v3_minimum(model: nn.Module, scales_train: bool) -> float:
    """Bytes that the gradients need where biases train in all layers, and with ``scales_train`` scales.

    A hardswish needs its input. The product of a squeeze-and-excitation needs both factors, so the clamps
    that compute them need no bits of their own; nor do those after a normalization that keeps its input for
    its scale. The last linear layer needs its input, and the dropout before it a bit an element.
    """
    ins, outs = _elements(model, IMAGES)
    modules = dict(model.named_modules())
    total = FLOAT * ins["classifier.3"] + math.ceil(ins["classifier.2"] / 8)
    kept = set()
    for name, module in modules.items():
        if isinstance(module, SqueezeExcitation):
            total += FLOAT * (ins[name] + outs[f"{name}.scale_activation"])
            block, _, index = name.rpartition(".")
            kept.add(f"{block}.{int(index) - 1}.2")
    for name, module in modules.items():
        if isinstance(module, nn.Hardswish) or (scales_train and isinstance(module, nn.BatchNorm2d)):
            total += FLOAT * ins[name]
        elif isinstance(module, nn.ReLU) and name not in kept:
            after_norm = not name.endswith(".activation")
            total += 0 if after_norm and scales_train else math.ceil(ins[name] / 8)
    return total


def _lite0_minimum(model: nn.Module, scales_train: bool) -> float:
    """A bit for each element that a ReLU6 clamps, or the normalization's input before it; the features."""
    ins, _ = _elements(model, IMAGES)
    total = FLOAT * ins["classifier"]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and scales_train:
            total += FLOAT * ins[name]
        elif isinstance(module, nn.ReLU6) and not scales_train:
            total += math.ceil(ins[name] / 8)
    return total


def _mobilenet_v3() -> nn.Module:
    return torchvision.models.mobilenet_v3_large(num_classes=10)


def _lite0() -> nn.Module:
    return timm.create_model("tf_efficientnet_lite0", num_classes=10)


PADDED_STEM = FLOAT * 2 * 3 * 65 * 65  # TensorFlow's padding is a copy, which the stem's gradient needs
MODELS = {
    "mobilenet_v3": (_mobilenet_v3, _mobilenet_v3_minimum, "features.0.0.weight", 0),
    "lite0": (_lite0, _lite0_minimum, "conv_stem.weight", PADDED_STEM),
}


@pytest.mark.parametrize("policy", ["bias", "stem", "norm"])
@pytest.mark.parametrize("family", MODELS)
def test_saved_bytes_are_the_minimum(family: str, policy: str) -> None:
    make, minimum, stem, of_stem = MODELS[family]
    expected = minimum(make(), policy == "norm") + (of_stem if policy == "stem" else 0)
    model = make()
    report = thawkit.freeze(model, f"{stem}+head" if policy == "stem" else policy, example=IMAGES)
    assert report.minimum_bytes == pytest.approx(expected, rel=1e-3)
    assert report.saved_bytes <= 1.05 * expected
    assert report.saved_bytes_before >= 1.6 * report.saved_bytes
