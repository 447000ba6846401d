"""The rewritten forms of timm's own layers. Import it only where timm is imported already."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn

from thawkit.frozen.layers import FrozenBatchNorm, Rewritten, frozen_convolution, is_scripting


class FrozenConv2dSame(Rewritten, Conv2dSame):
    """timm's TensorFlow-padded convolution that saves no activation while its weight is frozen."""

    stock = Conv2dSame

    def forward(self: Any, x: Tensor) -> Tensor:
        """Pad ``x``, ``(N, C, H, W)``, and convolve it."""
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        if is_scripting():
            return self._conv_forward(padded, self.weight, self.bias)
        else:
            output = frozen_convolution(self, padded, (0, 0))
            return self._conv_forward(padded, self.weight, self.bias) if output is None else output


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


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    Conv2dSame: FrozenConv2dSame,
    BatchNormAct2d: FrozenBatchNormAct2d,
}
