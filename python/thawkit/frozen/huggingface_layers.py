"""The extended forms of 🤗's ``Conv1D``. Import it only where transformers is imported already."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from thawkit.frozen.channels import ChannelLayer, channel_linear
from thawkit.frozen.deferred import plain
from thawkit.frozen.lora import LoraLayer, lora_linear


class LoraConv1D(LoraLayer, Conv1D):
    """GPT-2's linear layer, of weight (in, out), with ``lora_A`` (R, in) and ``lora_B`` (out, R)."""

    stock = Conv1D
    transposed = True

    def forward(self: Any, x: Tensor) -> Tensor:
        """Apply both products to ``x``, ``(*, in)``."""
        return lora_linear(self, plain(x))


class ChannelConv1D(ChannelLayer, Conv1D):
    """GPT-2's linear layer, of weight (in, out), of which some rows or columns train."""

    stock = Conv1D
    transposed = True

    def forward(self: Any, x: Tensor) -> Tensor:
        """Multiply ``x``, ``(*, in)``."""
        return channel_linear(self, plain(x))
