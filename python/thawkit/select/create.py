"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thawkit.data import Preprocess
from thawkit.errors import MissingDependencyError, ThawkitError, one_line
from thawkit.select.head import head, replace_head
from thawkit.select.lenet import LeNet
from thawkit.select.weights import efficientnet_lite0_file, load_backbone, match_in_order, read_weights

MAX_SIZE = 2048
"""Largest side of an input: one such image costs as much as 84 of 224 pixels."""


@dataclass
class Model:
    """A network with what is needed to feed it and to build it again.

    Attributes:
        module: float images (N, 3, size, size) to logits (N, num_classes).
        preprocess: uint8 images (N, 3, H, W) to the module's input.
        name: as given to :func:`create_model`.
        spec: JSON-able; ``create_model(**spec, pretrained=False)`` makes the same architecture.
    """

    module: nn.Module
    preprocess: Preprocess
    name: str
    spec: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """How many logits the module gives."""
        return int(self.spec["num_classes"])


_Built = tuple[nn.Module, Preprocess]


def create_model(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Model:
    """Make a network whose head has ``num_classes`` outputs.

    Args:
        name: ``efficientnet_lite0`` (ImageNet weights from the extra ``demo``, no download), ``lenet``
            (small, 28×28, no pretrained weights), ``torchvision:<name>`` or ``timm:<name>`` (weights from
            their cache or the network).
        num_classes: at least 2.
        pretrained: start from ImageNet weights where there are any.
        weights: a local ``.safetensors`` or torch state dict to start from instead; the head may differ.
        image_size: side of the input in pixels, instead of the network's own. Small images gain nothing from
            224 pixels, and the cost grows with the square. At most :data:`MAX_SIZE`.
        seed: draws the new layers, leaving the global random state as it was.

    Raises:
        ThawkitError: unknown name, weights that do not fit or cannot be fetched.
        MissingDependencyError: timm or the weights' package is not installed.
    """
    if num_classes < 2:
        raise ThawkitError(f"num_classes must be at least 2, got {num_classes}")
    if image_size is not None and not 1 <= image_size <= MAX_SIZE:
        raise ThawkitError(f"image_size must be from 1 to {MAX_SIZE}, got {image_size}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module, preprocess = _build(name, num_classes, pretrained and weights is None)
    if weights is not None:
        load_backbone(module, read_weights(weights), head(module)[0])
    if image_size is not None:
        preprocess = _resized(preprocess, image_size, name)
    spec = {"name": name, "num_classes": num_classes, "image_size": image_size}
    return Model(module.eval(), preprocess, name, spec)


def _build(name: str, num_classes: int, pretrained: bool) -> _Built:
    library, _, architecture = name.rpartition(":")
    builders: dict[str, Callable[[str, int, bool], _Built]] = {"torchvision": _torchvision, "timm": _timm}
    if library in builders:
        return builders[library](architecture, num_classes, pretrained)
    if name == "efficientnet_lite0":
        return _efficientnet_lite0(num_classes, pretrained)
    if name == "lenet":
        return LeNet(num_classes), Preprocess(28, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    raise ThawkitError(
        f"unknown model {name!r}; known: efficientnet_lite0, lenet, torchvision:<name>, timm:<name>"
    )


def _efficientnet_lite0(num_classes: int, pretrained: bool) -> _Built:
    """EfficientNet-Lite0: Tan and Le 2019 without squeeze-and-excitation or swish."""
    module = _import_timm().create_model("tf_efficientnet_lite0")
    if pretrained:
        module.load_state_dict(match_in_order(read_weights(efficientnet_lite0_file()), module))
    replace_head(module, num_classes)
    return module, Preprocess(224, 256, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def _torchvision(name: str, num_classes: int, pretrained: bool) -> _Built:
    from torchvision import models

    _require_known(name, models.list_models(module=models), "torchvision")
    weights = models.get_model_weights(name)["DEFAULT"]
    module = _fetched(lambda: models.get_model(name, weights=weights if pretrained else None), name)
    replace_head(module, num_classes)
    crop = weights.transforms()
    return module, Preprocess(crop.crop_size[0], crop.resize_size[0], crop.mean, crop.std)


def _timm(name: str, num_classes: int, pretrained: bool) -> _Built:
    timm = _import_timm()
    _require_known(name.split(".")[0], timm.list_models(), "timm")
    module = _fetched(lambda: timm.create_model(name, pretrained=pretrained), name)
    replace_head(module, num_classes)
    config = timm.data.resolve_model_data_config(module)
    size = config["input_size"][-1]
    return module, Preprocess(size, max(size, int(size / config["crop_pct"])), config["mean"], config["std"])


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError('timm is needed: pip install "thawkit[demo]"', name="timm") from error
    return timm


def _require_known(name: str, known: Iterable[str], library: str) -> None:
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ThawkitError(f"{library} has no classification model {name!r}{hint}")


def _fetched(make: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return make()
    except (OSError, RuntimeError) as error:
        raise ThawkitError(
            f"cannot get pretrained weights of {name}: {one_line(error)}; give a local file with weights=, "
            "or start from random ones with pretrained=False"
        ) from error


def _resized(preprocess: Preprocess, size: int, name: str) -> Preprocess:
    if name == "lenet":
        raise ThawkitError("lenet takes 28×28 images; image_size cannot change that")
    config = preprocess.config()
    resize = round(config["resize"] * size / config["size"])
    return Preprocess.from_config({**config, "size": size, "resize": resize})
