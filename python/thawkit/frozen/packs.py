"""What the second copies of frozen weights, folded or laid out for speed, take."""

from __future__ import annotations

from torch import nn

from thawkit.frozen import folded, lora, transformer_layers
from thawkit.frozen.layers import FrozenConv2d
from thawkit.ops.frozen import onednn, packed


def packed_bytes(model: nn.Module) -> int:
    """Bytes that copies of a frozen model's weights take now.

    A copy is made when a layer first needs it, one for the forward and one for the gradient of the input, and
    dropped when the weight changes and by :func:`thawkit.unfreeze`.
    """
    return sum(folded.folded_bytes(m) + packed.packed_bytes(m) for m in model.modules())


def forget(module: nn.Module) -> None:
    """Drop the copies of one module's weight."""
    folded.forget(module)
    packed.forget(module)


def forget_all(model: nn.Module) -> None:
    """Drop the copies of all weights of a model."""
    for module in model.modules():
        forget(module)


def unavailable(model: nn.Module) -> bool:
    """Whether the model has frozen weights that would be laid out for speed where oneDNN's operators run."""
    return not onednn.available() and _has_frozen_weights(model, FrozenConv2d, *_PRODUCTS)


def without_gain(model: nn.Module) -> bool:
    """Whether the model has frozen matrices that are left as they are, since torch's product is as fast."""
    return onednn.available() and not onednn.products_gain() and _has_frozen_weights(model, *_PRODUCTS)


_PRODUCTS = (
    transformer_layers.FrozenLinear,
    transformer_layers.FrozenMultiheadAttention,
    lora.LoraLinear,
)


def _has_frozen_weights(model: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(
        not p.requires_grad and p.dim() > 1 and p.device.type == "cpu"
        for module in model.modules()
        if isinstance(module, kinds)
        for p in module.parameters(recurse=False)
    )
