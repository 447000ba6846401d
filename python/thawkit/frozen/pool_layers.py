"""Pooling layers that save where the maxima were, or nothing, instead of their input."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from thawkit.frozen.layers import Rewritten, is_scripting, packs_bits, recording
from thawkit.ops.frozen import adaptive_avg_pool, avg_pool, packed_max_pool


def _max_pooled(module: Any, x: Tensor, dims: int) -> Tensor:
    """Pool ``x`` as the module does, saving codes where autograd records and a kernel writes them."""
    if module.return_indices or not packs_bits(x):
        return module.stock.forward(module, x)
    options = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    return packed_max_pool(x, dims, *options)


class PackedMaxPool1d(Rewritten, nn.MaxPool1d):
    """``nn.MaxPool1d`` that saves a few bits an output."""

    stock = nn.MaxPool1d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, L)`` or ``(C, L)``."""
        if is_scripting():
            return F.max_pool1d(
                input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
            )
        else:
            return _max_pooled(self, input, 1)


class PackedMaxPool2d(Rewritten, nn.MaxPool2d):
    """``nn.MaxPool2d`` that saves a few bits an output."""

    stock = nn.MaxPool2d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, H, W)`` or ``(C, H, W)``."""
        if is_scripting():
            return F.max_pool2d(
                input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
            )
        else:
            return _max_pooled(self, input, 2)


class PackedMaxPool3d(Rewritten, nn.MaxPool3d):
    """``nn.MaxPool3d`` that saves a few bits an output."""

    stock = nn.MaxPool3d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
        if is_scripting():
            return F.max_pool3d(
                input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
            )
        else:
            return _max_pooled(self, input, 3)


def averages(x: Tensor) -> bool:
    """Whether autograd records operations on ``x``, so that an average pool may save nothing."""
    return recording(x) and x.requires_grad and x.is_floating_point()


def _avg_pooled(module: Any, x: Tensor, dims: int) -> Tensor:
    """Pool ``x`` as the module does, saving nothing where autograd records."""
    if not averages(x):
        return module.stock.forward(module, x)
    options = module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad
    divisor = () if dims == 1 else (module.divisor_override,)
    return avg_pool(x, dims, *options, *divisor)


class FrozenAvgPool1d(Rewritten, nn.AvgPool1d):
    """``nn.AvgPool1d`` that saves nothing."""

    stock = nn.AvgPool1d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, L)`` or ``(C, L)``."""
        if is_scripting():
            return F.avg_pool1d(
                input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
            )
        else:
            return _avg_pooled(self, input, 1)


class FrozenAvgPool2d(Rewritten, nn.AvgPool2d):
    """``nn.AvgPool2d`` that saves nothing."""

    stock = nn.AvgPool2d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, H, W)`` or ``(C, H, W)``."""
        if is_scripting():
            return F.avg_pool2d(
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.ceil_mode,
                self.count_include_pad,
                self.divisor_override,
            )
        else:
            return _avg_pooled(self, input, 2)


class FrozenAvgPool3d(Rewritten, nn.AvgPool3d):
    """``nn.AvgPool3d`` that saves nothing."""

    stock = nn.AvgPool3d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
        if is_scripting():
            return F.avg_pool3d(
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.ceil_mode,
                self.count_include_pad,
                self.divisor_override,
            )
        else:
            return _avg_pooled(self, input, 3)


def _adaptively_pooled(module: Any, x: Tensor, dims: int) -> Tensor:
    return adaptive_avg_pool(x, dims, module.output_size) if averages(x) else module.stock.forward(module, x)


class FrozenAdaptiveAvgPool1d(Rewritten, nn.AdaptiveAvgPool1d):
    """``nn.AdaptiveAvgPool1d`` that saves nothing."""

    stock = nn.AdaptiveAvgPool1d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, L)`` or ``(C, L)``."""
        if is_scripting():
            return F.adaptive_avg_pool1d(input, self.output_size)
        else:
            return _adaptively_pooled(self, input, 1)


class FrozenAdaptiveAvgPool2d(Rewritten, nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` that saves nothing."""

    stock = nn.AdaptiveAvgPool2d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, H, W)`` or ``(C, H, W)``."""
        if is_scripting():
            return F.adaptive_avg_pool2d(input, self.output_size)
        else:
            return _adaptively_pooled(self, input, 2)


class FrozenAdaptiveAvgPool3d(Rewritten, nn.AdaptiveAvgPool3d):
    """``nn.AdaptiveAvgPool3d`` that saves nothing."""

    stock = nn.AdaptiveAvgPool3d

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
        if is_scripting():
            return F.adaptive_avg_pool3d(input, self.output_size)
        else:
            return _adaptively_pooled(self, input, 3)


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    new.stock: new
    for new in (
        PackedMaxPool1d,
        PackedMaxPool2d,
        PackedMaxPool3d,
        FrozenAvgPool1d,
        FrozenAvgPool2d,
        FrozenAvgPool3d,
        FrozenAdaptiveAvgPool1d,
        FrozenAdaptiveAvgPool2d,
        FrozenAdaptiveAvgPool3d,
    )
}

_POOLS = (_MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd)


def saves_input(module: nn.Module) -> bool:
    """Whether the stock form of a layer is a pool that saves its input: to size 1 torch takes the mean."""
    if isinstance(module, _AdaptiveAvgPoolNd):
        return module.output_size not in (1, (1, 1), (1, 1, 1))
    return isinstance(module, _POOLS)


def saves_less(module: nn.Module) -> bool:
    """Whether the rewritten form of a pool saves less than the stock one."""
    return type(module) in CLASSES and saves_input(module) and not getattr(module, "return_indices", False)
