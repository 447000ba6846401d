"""The rewritten forms of timm's own layers. Import it only where timm is imported already."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.fast_norm import rms_norm
from timm.layers.norm import LayerNorm, RmsNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding, pad_same
from torch import Tensor, nn

from thawkit.frozen.deferred import plain
from thawkit.frozen.layers import (
    FrozenBatchNorm,
    FrozenConv2d,
    Rewritten,
    can_replace,
    frozen_convolution,
    is_scripting,
)
from thawkit.frozen.lossy_layers import (
    Lossy,
    LossyFixedBatchNorm,
    lossy_convolution,
    lossy_layer_norm,
    normalized_by_batch,
)
from thawkit.frozen.transformer_layers import composed, layer_norm, recomputable
from thawkit.ops.frozen.pad import zero_pad


class FrozenConv2dSame(FrozenConv2d, Conv2dSame):
    """timm's TensorFlow-padded convolution that saves no activation while its weight is frozen."""

    stock: ClassVar[type[nn.Module]] = Conv2dSame

    def forward(self: Any, x: Tensor) -> Tensor:
        """Pad ``x``, ``(N, C, H, W)``, and convolve it."""
        if is_scripting():
            padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
            return self._conv_forward(padded, self.weight, self.bias)
        else:
            return super().forward(_padded(self, plain(x)))

    def convolve(self: Any, x: Tensor) -> Tensor:
        """Convolve ``x``, which is padded already."""
        output = frozen_convolution(self, x, (0, 0))
        return self._conv_forward(x, self.weight, self.bias) if output is None else output


def _padded(conv: Any, x: Tensor) -> Tensor:
    if not can_replace(x) or x.dim() != 4 or x.device.type != "cpu":
        return pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    rows, columns = (
        get_same_padding(*sizes)
        for sizes in zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    )
    return zero_pad(x, columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)


class FrozenBatchNormAct2d(FrozenBatchNorm, BatchNormAct2d):
    """timm's batch normalization with activation, with fixed statistics; its activation swaps by itself."""

    stock = BatchNormAct2d

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(N, C, H, W)``, by the running statistics and apply the activation."""
        if is_scripting():
            mean, variance = self.running_mean, self.running_var
            y = F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        else:
            y = self.normalize(x)
        return self.act(self.drop(y))


class RecomputableTimmLayerNorm(Rewritten, LayerNorm):
    """timm's layer normalization, whose output the next linear layer need not save."""

    stock = LayerNorm

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            x = plain(x)
            if self._fast_norm:
                return self.stock.forward(self, x)
            again = partial(layer_norm, self.normalized_shape, self.eps)
            return recomputable(again, x, self.weight, self.bias)


class RecomputableTimmRmsNorm(Rewritten, RmsNorm):
    """timm's RMS normalization that saves its input alone, and whose output the next layer need not save."""

    stock = RmsNorm

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return rms_norm(x, self.normalized_shape, self.weight, self.eps)
        else:
            x = plain(x)
            if self._fast_norm:
                return self.stock.forward(self, x)
            return composed(partial(_rms_norm, self.normalized_shape, self.eps), x, self.weight)


def _rms_norm(shape: Any, eps: float, x: Tensor, weight: Tensor | None) -> Tensor:
    return rms_norm(x, shape, weight, eps)


class LossyConv2dSame(Lossy, FrozenConv2dSame):
    """timm's TensorFlow-padded convolution that saves its rounded input while its weight trains."""

    stock = Conv2dSame

    def convolve(self: Any, x: Tensor) -> Tensor:
        """Convolve ``x``, which is padded already."""
        if self.weight.requires_grad:
            return lossy_convolution(self, x, (0, 0))
        return super().convolve(x)


class LossyFixedBatchNormAct2d(LossyFixedBatchNorm, FrozenBatchNormAct2d):
    """timm's, of fixed statistics, that saves its rounded normalized input if its scale trains."""

    stock = BatchNormAct2d


class LossyBatchNormAct2d(Lossy, BatchNormAct2d):
    """timm's that saves its rounded normalized input while it goes by the batch."""

    stock = BatchNormAct2d

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(N, C, H, W)``, and apply the activation."""
        if is_scripting():
            mean, variance = self.running_mean, self.running_var
            y = F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, 0.0, self.eps)
            return self.act(self.drop(y))
        else:
            normalized = normalized_by_batch(self, plain(x)) if x.dim() == 4 else None
            if normalized is None:
                return self.stock.forward(self, x)
            return self.act(self.drop(normalized))


class LossyTimmLayerNorm(Lossy, LayerNorm):
    """timm's layer normalization that saves its rounded normalized input."""

    stock = LayerNorm

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            y = None if self._fast_norm else lossy_layer_norm(self, plain(x))
            return self.stock.forward(self, x) if y is None else y


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    Conv2dSame: FrozenConv2dSame,
    BatchNormAct2d: FrozenBatchNormAct2d,
}
RECOMPUTABLE: dict[type[nn.Module], type[Rewritten]] = {
    LayerNorm: RecomputableTimmLayerNorm,
    RmsNorm: RecomputableTimmRmsNorm,
}
"""Those that are worth their rewriting whatever trains."""
LOSSY: dict[type[nn.Module], type[Lossy]] = {
    Conv2dSame: LossyConv2dSame,
    BatchNormAct2d: LossyBatchNormAct2d,
    LayerNorm: LossyTimmLayerNorm,
}
FIXED: dict[type[nn.Module], type[Lossy]] = {BatchNormAct2d: LossyFixedBatchNormAct2d}
