"""What the second copies of frozen weights, folded or laid out for speed, take."""

from __future__ import annotations

from torch import nn

from thawkit.frozen import folded, transformer_layers
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


def unavailable(model: nn.Module) -> bool:
    """Whether the model has frozen weights that would be laid out for speed where oneDNN's operators run."""
    kinds = (FrozenConv2d, transformer_layers.FrozenLinear, transformer_layers.FrozenMultiheadAttention)
    frozen = (
        p
        for module in model.modules()
        if isinstance(module, kinds)
        for p in module.parameters(recurse=False)
        if not p.requires_grad and p.dim() > 1
    )
    return not onednn.available() and any(p.device.type == "cpu" for p in frozen)
