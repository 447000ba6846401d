"""The rewritten forms of timm's own layers. Import it only where timm is imported already."""

from __future__ import annotations

from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor

from thawkit.frozen.layers import FrozenBatchNorm, Rewritten, frozen_convolution, recording


class FrozenConv2dSame(Rewritten, Conv2dSame):
    """timm's TensorFlow-padded convolution that saves no activation while its weight is frozen."""

    stock = Conv2dSame

    def forward(self, x: Tensor) -> Tensor:
        """Pad ``x``, ``(N, C, H, W)``, and convolve it."""
        if recording(x):
            padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
            output = frozen_convolution(self, padded, (0, 0))
            if output is not None:
                return output
        return super().forward(x)


class FrozenBatchNormAct2d(FrozenBatchNorm, BatchNormAct2d):
    """timm's batch normalization with activation, with fixed statistics; its activation swaps by itself."""

    stock = BatchNormAct2d

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(N, C, H, W)``, by the running statistics and apply the activation."""
        return self.act(self.drop(self.normalize(x)))
