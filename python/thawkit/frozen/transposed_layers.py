"""Transposed convolutions that save no activation while their weight is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thawkit.frozen.deferred import plain
from thawkit.frozen.layers import Rewritten, differentiated, is_scripting
from thawkit.ops.frozen.convolution import CONVOLUTION, bias_gradient

TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


class _Transposed(torch.autograd.Function):
    """Transposed convolution with a frozen weight: the gradient in its input is a plain convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        groups: int,
        dilation: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        ctx.geometry = stride, padding, dilation, groups
        ctx.bias_dtype = None if bias is None else bias.dtype
        geometry = stride, padding, output_padding, groups, dilation
        return TRANSPOSED[weight.dim() - 3](x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = weight.to(grad.dtype)  # under autocast the forward used a cast copy, which is gone
            grad_input = CONVOLUTION[weight.dim() - 3](grad, weight, None, *ctx.geometry)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(grad, 1, ctx.bias_dtype)
        return grad_input, None, grad_bias, *(None,) * 5


def _transposed(module: Any, x: Tensor, output_size: list[int] | None) -> Tensor:
    weight, bias = module.weight, module.bias
    if not differentiated(x, weight, bias):
        return module.stock.forward(module, x, output_size)
    dims = weight.dim() - 2
    extra = module._output_padding(
        x, output_size, module.stride, module.padding, module.kernel_size, dims, module.dilation
    )
    geometry = module.stride, module.padding, tuple(extra), module.groups, module.dilation
    if x.dim() == weight.dim():
        return _Transposed.apply(x, weight, bias, *geometry)
    return _Transposed.apply(x.unsqueeze(0), weight, bias, *geometry).squeeze(0)


class FrozenConvTranspose1d(Rewritten, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` that saves no activation while its weight is frozen."""

    stock = nn.ConvTranspose1d

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``input``, ``(N, C, L)`` or ``(C, L)``."""
        if is_scripting():
            extra = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, 1, self.dilation
            )
            return torch.conv_transpose1d(
                input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
            )
        else:
            return _transposed(self, plain(input), output_size)


class FrozenConvTranspose2d(Rewritten, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` that saves no activation while its weight is frozen."""

    stock = nn.ConvTranspose2d

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``input``, ``(N, C, H, W)`` or ``(C, H, W)``."""
        if is_scripting():
            extra = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
            )
            return torch.conv_transpose2d(
                input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
            )
        else:
            return _transposed(self, plain(input), output_size)


class FrozenConvTranspose3d(Rewritten, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that saves no activation while its weight is frozen."""

    stock = nn.ConvTranspose3d

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``input``, ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
        if is_scripting():
            extra = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation
            )
            return torch.conv_transpose3d(
                input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
            )
        else:
            return _transposed(self, plain(input), output_size)


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    kind.stock: kind for kind in (FrozenConvTranspose1d, FrozenConvTranspose2d, FrozenConvTranspose3d)
}
