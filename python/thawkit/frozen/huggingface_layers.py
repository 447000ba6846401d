"""The rewritten and extended forms of 🤗's layers. Import it only where transformers is imported already."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations
from transformers.pytorch_utils import Conv1D

from thawkit.frozen.channels import ChannelLayer, channel_linear
from thawkit.frozen.deferred import plain
from thawkit.frozen.layers import Rewritten, recording
from thawkit.frozen.lora import LoraLayer, lora_linear
from thawkit.frozen.transformer_layers import composed, product, recomputable


class FrozenConv1D(Rewritten, Conv1D):
    """GPT-2's linear layer, of weight (in, out), that saves what is cheapest, as ``FrozenLinear``."""

    stock = Conv1D

    def forward(self: Any, x: Tensor) -> Tensor:
        """Multiply ``x``, ``(*, in)``, by the weight."""
        return product(self, plain(x), self.weight, self.bias, transposed=True)


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


class _Composed(Rewritten):
    """An activation of several operators, each of which would save something."""

    def forward(self: Any, input: Tensor, *options: Any, **more: Any) -> Any:
        return composed(lambda x: self.stock.forward(self, x, *options, **more), plain(input))


class _OneOperator(Rewritten):
    """An activation whose ``act`` is torch's own operator, unless it was asked to spell it out."""

    operator: Any

    def forward(self: Any, input: Tensor) -> Tensor:
        x = plain(input)
        if getattr(self.act, "func", self.act) is self.operator:
            return recomputable(self.act, x)
        return composed(self.act, x)


class RecomputableGELUActivation(_OneOperator, activations.GELUActivation):
    """🤗's GELU, whose output the next linear layer need not save."""

    stock = activations.GELUActivation
    operator = F.gelu


class RecomputableGELUTanh(_OneOperator, activations.PytorchGELUTanh):
    """🤗's GELU by tanh in one operator, whose output the next linear layer need not save."""

    stock = activations.PytorchGELUTanh
    operator = F.gelu


class RecomputableMishActivation(_OneOperator, activations.MishActivation):
    """🤗's Mish, whose output the next linear layer need not save."""

    stock = activations.MishActivation
    operator = F.mish


class RecomputableSiLUActivation(Rewritten, activations.SiLUActivation):
    """🤗's SiLU, whose output the next linear layer need not save."""

    stock = activations.SiLUActivation

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        return recomputable(F.silu, plain(input))


class RecomputableNewGELUActivation(Rewritten, activations.NewGELUActivation):
    """GPT-2's GELU by tanh, as torch's operator for it, which saves the input alone."""

    stock = activations.NewGELUActivation

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        return _gelu_by_tanh(self, plain(input))


class RecomputableAccurateGELUActivation(Rewritten, activations.AccurateGELUActivation):
    """MEGA's GELU by tanh, as torch's operator for it, which saves the input alone."""

    stock = activations.AccurateGELUActivation

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        return _gelu_by_tanh(self, plain(input))


def _gelu_by_tanh(module: Any, x: Tensor) -> Tensor:
    if not recording(x) or torch.is_autocast_enabled(x.device.type):
        return module.stock.forward(module, x)
    return recomputable(partial(F.gelu, approximate="tanh"), x)


class RecomputableFastGELUActivation(_Composed, activations.FastGELUActivation):
    """🤗's GELU by tanh with a rounded constant, of which only the input is saved."""

    stock = activations.FastGELUActivation


class RecomputableQuickGELUActivation(_Composed, activations.QuickGELUActivation):
    """CLIP's GELU by a sigmoid, of which only the input is saved."""

    stock = activations.QuickGELUActivation


class RecomputableClippedGELUActivation(  # type: ignore[misc]  # it calls its input x
    _Composed, activations.ClippedGELUActivation
):
    """A GELU between two bounds, of which only the input is saved."""

    stock = activations.ClippedGELUActivation


class RecomputableLaplaceActivation(_Composed, activations.LaplaceActivation):
    """MEGA's activation, of which only the input is saved."""

    stock = activations.LaplaceActivation


class RecomputableReLUSquaredActivation(_Composed, activations.ReLUSquaredActivation):
    """The square of ReLU, of which only the input is saved."""

    stock = activations.ReLUSquaredActivation


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    kind.stock: kind
    for kind in (
        FrozenConv1D,
        RecomputableGELUActivation,
        RecomputableGELUTanh,
        RecomputableMishActivation,
        RecomputableSiLUActivation,
        RecomputableNewGELUActivation,
        RecomputableAccurateGELUActivation,
        RecomputableFastGELUActivation,
        RecomputableQuickGELUActivation,
        RecomputableClippedGELUActivation,
        RecomputableLaplaceActivation,
        RecomputableReLUSquaredActivation,
    )
}
