"""Lossy: layers that save what the exact ones cannot do without rounded to a few bits (``act_bits``).

Values stay torch's own, gradients come near. What needs a gradient is read at every forward, and where the
exact layers act by the stock forward these do too. A layer keeps its bits as an attribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from thawkit.frozen.deferred import plain
from thawkit.frozen.layers import (
    FrozenBatchNorm,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenConv1d,
    FrozenConv2d,
    FrozenConv3d,
    Rewritten,
    is_scripting,
    padded,
    recording,
)
from thawkit.frozen.transformer_layers import FrozenLinear, RecomputableLayerNorm
from thawkit.ops.frozen import lossy
from thawkit.ops.frozen.autocast import autocast
from thawkit.ops.frozen.lossy import Bits
from thawkit.ops.frozen.recompute import recipe_of

BITS = "_thawkit_act_bits"  # set on the layers and on the frozen model

_exact = False


@contextmanager
def exactly() -> Iterator[None]:
    """Let lossy layers save what the exact ones do, so that both gradients can be compared."""
    global _exact
    _exact, before = True, _exact
    try:
        yield
    finally:
        _exact = before


def rounds(x: Tensor) -> bool:
    """Whether layers may round what they save of ``x``, which is floating."""
    return not _exact and recording(x) and x.is_floating_point()


def bits_of(module: nn.Module) -> Bits:
    """The bits of a lossy layer."""
    return lossy.bits_of(vars(module)[BITS])


class Lossy(Rewritten):
    """Base of the lossy layers."""


def _smooth(module: Any, input: Tensor, kind: str, *settings: Any) -> Tensor:
    """Apply an activation, saving its rounded derivative where it may."""
    x = plain(input)
    if not (rounds(x) and x.requires_grad):
        return module.stock.forward(module, x)
    y = lossy.activation(x, kind, bits_of(module).derivative, *settings)
    return x.copy_(y) if getattr(module, "inplace", False) else y


class LossyGELU(Lossy, nn.GELU):
    """``nn.GELU`` that saves its rounded derivative."""

    stock = nn.GELU

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.gelu(input, approximate=self.approximate)
        else:
            return _smooth(self, input, "gelu", self.approximate)


class LossySiLU(Lossy, nn.SiLU):
    """``nn.SiLU`` that saves its rounded derivative."""

    stock = nn.SiLU

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.silu(input, inplace=self.inplace)
        else:
            return _smooth(self, input, "silu")


class LossyMish(Lossy, nn.Mish):
    """``nn.Mish`` that saves its rounded derivative."""

    stock = nn.Mish

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.mish(input, inplace=self.inplace)
        else:
            return _smooth(self, input, "mish")


class LossyHardswish(Lossy, nn.Hardswish):
    """``nn.Hardswish`` that saves its rounded derivative."""

    stock = nn.Hardswish

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.hardswish(input, self.inplace)
        else:
            return _smooth(self, input, "hardswish")


class LossyTanh(Lossy, nn.Tanh):
    """``nn.Tanh`` that saves its rounded derivative."""

    stock = nn.Tanh

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return torch.tanh(input)
        else:
            return _smooth(self, input, "tanh")


class LossySigmoid(Lossy, nn.Sigmoid):
    """``nn.Sigmoid`` that saves its rounded derivative."""

    stock = nn.Sigmoid

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return torch.sigmoid(input)
        else:
            return _smooth(self, input, "sigmoid")


class LossyELU(Lossy, nn.ELU):
    """``nn.ELU`` that saves its rounded derivative."""

    stock = nn.ELU

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.elu(input, self.alpha, self.inplace)
        else:
            return _smooth(self, input, "elu", self.alpha)


class LossySoftplus(Lossy, nn.Softplus):
    """``nn.Softplus`` that saves its rounded derivative."""

    stock = nn.Softplus

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.softplus(input, self.beta, self.threshold)
        else:
            return _smooth(self, input, "softplus", self.beta, self.threshold)


def _same_dtype(*tensors: Tensor | None) -> list[Any]:
    """The tensors as autocast would have them."""
    return [None if t is None else autocast(t) for t in tensors]


class LossyLinear(Lossy, FrozenLinear):
    """``nn.Linear`` that saves its rounded input while its weight trains.

    The input stays exact where that costs nothing: computed again from what a normalization saves, or the
    result of attention, which attention saves itself.
    """

    stock = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``input``, ``(*, in_features)``, by the weight."""
        if is_scripting():
            return F.linear(input, self.weight, self.bias)
        else:
            x = plain(input)
            if rounds(x) and self.weight.requires_grad and x.dim() > 0 and not _kept_anyway(x):
                x, weight, bias = _same_dtype(x, self.weight, self.bias)
                return lossy.linear(x, weight, bias, bits_of(self).input)
            return super().forward(x)


def _kept_anyway(x: Tensor) -> bool:
    return recipe_of(x) is not None or lossy.is_mixture_of_attention(x)


class _LossyConv(Lossy):
    def forward(self: Any, input: Tensor) -> Tensor:
        if is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            return lossy_convolution(self, input) if self.weight.requires_grad else super().forward(input)


def lossy_convolution(module: _ConvNd, input: Tensor, padding: tuple[int, ...] | None = None) -> Tensor:
    """A convolution whose weight trains; ``padding`` as for :func:`.layers.frozen_convolution`."""
    x, weight = plain(input), module.weight
    if not rounds(x) or x.dim() != weight.dim():
        return module._conv_forward(x, weight, module.bias)
    x, weight, bias = _same_dtype(x, weight, module.bias)
    if padding is None:
        x, padding = padded(module, x)
    geometry = module.stride, padding, module.dilation
    return lossy.convolution(x, weight, bias, geometry, module.groups, bits_of(module).input)


class LossyConv1d(_LossyConv, FrozenConv1d):
    """``nn.Conv1d`` that saves its rounded input while its weight trains."""

    stock = nn.Conv1d


class LossyConv2d(_LossyConv, FrozenConv2d):
    """``nn.Conv2d`` that saves its rounded input while its weight trains."""

    stock = nn.Conv2d


class LossyConv3d(_LossyConv, FrozenConv3d):
    """``nn.Conv3d`` that saves its rounded input while its weight trains."""

    stock = nn.Conv3d


class LossyLayerNorm(Lossy, RecomputableLayerNorm):
    """``nn.LayerNorm`` that saves its rounded normalized input, from which linear layers take theirs."""

    stock = nn.LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            y = lossy_layer_norm(self, plain(input))
            return super().forward(input) if y is None else y


def lossy_layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor | None:
    """Normalize ``x``, or return None where the exact layer should."""
    weight, bias = module.weight, module.bias
    trains = x.requires_grad or any(p is not None and p.requires_grad for p in (weight, bias))
    if not (rounds(x) and trains):
        return None
    shape = tuple(module.normalized_shape)
    return lossy.layer_norm(x, shape, weight, bias, module.eps, bits_of(module).input)


class LossyFixedBatchNorm(Lossy, FrozenBatchNorm):
    """Base of the batch normalizations of fixed statistics whose scale may train."""

    def normalize(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(N, C)`` or ``(N, C, *sizes)``, by the running statistics."""
        if self.weight is None or not self.weight.requires_grad:
            return super().normalize(x)
        x = plain(x)
        return _batch_norm(self, x, False, 0.0) if rounds(x) else super().normalize(x)


class LossyFixedBatchNorm1d(LossyFixedBatchNorm, FrozenBatchNorm1d):
    """``nn.BatchNorm1d`` of fixed statistics that saves its rounded normalized input if its scale trains."""

    stock = nn.BatchNorm1d


class LossyFixedBatchNorm2d(LossyFixedBatchNorm, FrozenBatchNorm2d):
    """``nn.BatchNorm2d`` of fixed statistics that saves its rounded normalized input if its scale trains."""

    stock = nn.BatchNorm2d


class LossyFixedBatchNorm3d(LossyFixedBatchNorm, FrozenBatchNorm3d):
    """``nn.BatchNorm3d`` of fixed statistics that saves its rounded normalized input if its scale trains."""

    stock = nn.BatchNorm3d


def _batch_norm(module: Any, x: Tensor, by_batch: bool, momentum: float) -> Tensor:
    moves = module.running_mean, module.running_var
    if by_batch and not module.track_running_stats:
        moves = None, None
    bits = bits_of(module).input
    return lossy.batch_norm(x, *moves, module.weight, module.bias, by_batch, momentum, module.eps, bits)


def normalized_by_batch(module: Any, x: Tensor) -> Tensor | None:
    """What ``module`` makes of ``x`` in training mode, or None where the stock forward should run."""
    trains = x.requires_grad or (module.weight is not None and module.weight.requires_grad)
    enough = x.dim() > 1 and x.shape[1] > 0 and x.numel() > x.shape[1]  # else torch says what is wrong
    autocasts = torch.is_autocast_enabled(x.device.type)
    if not (module.training and rounds(x) and trains and enough) or autocasts:
        return None
    momentum = module.momentum
    if module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(module.num_batches_tracked)
    return _batch_norm(module, x, True, momentum or 0.0)


class _LossyBatchNorm(Lossy):
    def forward(self: Any, input: Tensor) -> Tensor:
        if is_scripting():
            by_batch = self.training or self.running_mean is None
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, by_batch, 0.0, self.eps
            )
        else:
            x = plain(input)
            self._check_input_dim(x)
            y = normalized_by_batch(self, x)
            return self.stock.forward(self, x) if y is None else y


class LossyBatchNorm1d(_LossyBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that saves its rounded normalized input while it goes by the batch."""

    stock = nn.BatchNorm1d


class LossyBatchNorm2d(_LossyBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that saves its rounded normalized input while it goes by the batch."""

    stock = nn.BatchNorm2d


class LossyBatchNorm3d(_LossyBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` that saves its rounded normalized input while it goes by the batch."""

    stock = nn.BatchNorm3d


CLASSES: dict[type[nn.Module], type[Lossy]] = {
    new.stock: new
    for new in (
        LossyGELU,
        LossySiLU,
        LossyMish,
        LossyHardswish,
        LossyTanh,
        LossySigmoid,
        LossyELU,
        LossySoftplus,
        LossyLinear,
        LossyConv1d,
        LossyConv2d,
        LossyConv3d,
        LossyLayerNorm,
        LossyBatchNorm1d,
        LossyBatchNorm2d,
        LossyBatchNorm3d,
    )
}
FIXED: dict[type[nn.Module], type[Lossy]] = {
    new.stock: new for new in (LossyFixedBatchNorm1d, LossyFixedBatchNorm2d, LossyFixedBatchNorm3d)
}
"""Of batch normalizations that keep their running statistics."""
