"""Layers that save for the backward pass only what their frozen parameters leave to be computed.

PyTorch's own convolution, batch normalization and ReLU save their input or output whenever *anything* of
theirs needs a gradient. With the weight frozen none of them needs it: the gradients of a convolution are
a product of ``dY`` with the weight and a sum of ``dY``, those of a batch normalization with fixed statistics
a scaling and a sum, that of a ReLU a mask of one bit an element.

Each class here is a stock class with another ``forward``. :mod:`thawkit.frozen.rewrite` assigns it to
``module.__class__``, so parameters, buffers, hooks and ``state_dict`` keys stay as they are. What needs a
gradient is read at every forward; where these forwards would gain nothing (``no_grad``, a trainable weight)
or could not be followed (``torch.compile``, export, tracing, ``torch.func``) the stock forward runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.conv import _ConvNd

from thawkit.frozen.deferred import Deferred, Input, clamped, defer, pending_of, plain
from thawkit.frozen.folded import PendingConvolution, PendingNormalization, put_off
from thawkit.ops.dispatch import forced_backend, unavailable
from thawkit.ops.frozen import packed_relu
from thawkit.ops.frozen.convolution import CONVOLUTION, bias_gradient, input_gradient
from thawkit.ops.frozen.normalization import fixed_batch_norm
from thawkit.ops.frozen.packed import has_plain_values

is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # torch.jit names no exports


def can_replace(x: Tensor) -> bool:
    """Whether operations on ``x`` run eagerly, one by one, so that another one may stand in for torch's."""
    return (
        not torch.compiler.is_compiling()
        and isinstance(x, Tensor)  # torch.fx traces with proxies
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]  # as above
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def recording(x: Tensor) -> bool:
    """Whether autograd records operations on ``x`` eagerly, so that Functions here may act."""
    return torch.is_grad_enabled() and can_replace(x)


def comes_and_goes(module: nn.Module) -> bool:
    """Whether FSDP takes the module's weights away once it, or the unit that it is part of, has run.

    Nothing may then be computed of them later.
    """
    return vars(module).get("_is_fsdp_managed_module", False)


def fingerprinted(module: nn.Module, *parts: Tensor) -> bool:
    """Whether a :class:`Fingerprint` of a module's parameters tells what was made of them before."""
    return all(map(has_plain_values, parts)) and not comes_and_goes(module)


class Rewritten(nn.Module):
    """Base of the classes that stand in for a stock one.

    Their ``forward`` begins with what ``torch.jit.script`` is to compile, which knows no ``super()``.
    """

    stock: ClassVar[type[nn.Module]]


class _Convolution(torch.autograd.Function):
    """Convolution with a frozen weight: saves the weight, which exists anyway, and no activation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        ctx.geometry, ctx.groups = (stride, padding, dilation), groups
        ctx.layout = x.shape, x.stride()
        ctx.bias_dtype = None if bias is None else bias.dtype
        return CONVOLUTION[weight.dim() - 3](x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            (weight,) = ctx.saved_tensors
            weight = weight.to(grad.dtype)  # under autocast the forward used a cast copy, which is gone
            grad_input = input_gradient(grad, ctx.layout, weight, ctx.geometry, ctx.groups)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(grad, 1, ctx.bias_dtype)
        return grad_input, None, grad_bias, None, None, None, None


def padded(module: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Pad ``x`` as the module says where the convolution cannot; return it and what is left to pad."""
    zeros = module.padding_mode == "zeros"
    if zeros and not isinstance(module.padding, str):
        return x, module.padding
    both = module._reversed_padding_repeated_twice
    before, after = both[-2::-2], both[-1::-2]
    if zeros and before == after:
        return x, tuple(before)
    return F.pad(x, both, "constant" if zeros else module.padding_mode), (0,) * len(module.stride)


def frozen_convolution(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, padding: tuple[int, ...] | None
) -> Tensor | None:
    """Apply a convolution of frozen weight, or return None where the stock forward should run.

    Args:
        module: gives weight, bias and geometry.
        x: ``(N, C, *sizes)`` or ``(C, *sizes)``, already padded where ``padding`` says 0.
        padding: zeros on each side of each size; None for what the module says.
    """
    weight, bias = module.weight, module.bias
    if not differentiated(x, weight, bias):
        return None
    if padding is None:
        x, padding = padded(module, x)
    return functional_convolution(x, weight, bias, module.stride, padding, module.dilation, module.groups)


def differentiated(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a convolution is differentiated and its weight is not."""
    bias_trains = bias is not None and bias.requires_grad
    return recording(x) and not weight.requires_grad and (x.requires_grad or bias_trains)


def functional_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """As :func:`frozen_convolution`, from the arguments of :func:`torch.nn.functional.conv2d`."""
    dims = weight.dim() - 2
    if not differentiated(x, weight, bias) or isinstance(padding, str) or dims not in (1, 2, 3):
        return None
    geometry = [(n,) * dims if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation)]
    if x.dim() == weight.dim():
        return _Convolution.apply(x, weight, bias, *geometry, groups)
    return _Convolution.apply(x.unsqueeze(0), weight, bias, *geometry, groups).squeeze(0)


class _FrozenConv(Rewritten):
    def forward(self: Any, input: Tensor) -> Tensor:
        if is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            return self.convolve(plain(input))

    def convolve(self: Any, x: Tensor) -> Tensor:
        """Convolve ``x`` and save nothing where the weight is frozen."""
        output = frozen_convolution(self, x, None)
        return self.stock.forward(self, x) if output is None else output


class FrozenConv1d(_FrozenConv, nn.Conv1d):
    """``nn.Conv1d`` that saves no activation while its weight is frozen."""

    stock = nn.Conv1d


class FrozenConv2d(_FrozenConv, nn.Conv2d):
    """``nn.Conv2d`` that saves no activation while its weight is frozen.

    ``folds`` says that a normalization is expected to follow: the two then run as one. ``exact`` says that
    NaN must pass a clamp that joins them.
    """

    stock: ClassVar[type[nn.Module]] = nn.Conv2d
    folds = False
    exact = True

    def forward(self: Any, input: Tensor) -> Tensor:
        """Convolve ``input``, ``(N, C, H, W)``."""
        if is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            x = plain(input)
            if self.folds and _foldable(self, x):
                waiting = put_off(self, x)
                if waiting is not None:
                    return defer(waiting)
            return self.convolve(x)


def _foldable(module: nn.Conv2d, x: Tensor) -> bool:
    return (
        _may_wait(module, x)
        and not module.weight.requires_grad
        and x.dtype == module.weight.dtype
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
        and not torch.is_autocast_enabled("cpu")
    )


def _may_wait(module: nn.Module, x: Tensor) -> bool:
    """Whether what a module makes of ``x`` may be computed later."""
    return (
        can_replace(x)
        and not isinstance(x, FakeTensor)  # has no values to be folded
        and x.device.type == "cpu"
        and not module._forward_hooks  # whoever listens for the result may keep it
        and not comes_and_goes(module)
    )


class FrozenConv3d(_FrozenConv, nn.Conv3d):
    """``nn.Conv3d`` that saves no activation while its weight is frozen."""

    stock = nn.Conv3d


class FrozenBatchNorm(Rewritten):
    """Base of the batch normalizations that keep their running statistics, whatever ``model.train()`` says.

    ``thawed_training`` is the mode the module would be in by now had it not been frozen. ``folds`` says that
    a sum and a clamp may join it.
    """

    folds = True

    def train(self, mode: bool = True) -> Any:
        """Switch children (timm's activations) to ``mode``; this module itself stays in evaluation mode."""
        super().train(mode)
        self.training = False
        self.thawed_training = mode
        return self

    def normalize(self: Any, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(N, C)`` or ``(N, C, *sizes)``, by the running statistics."""
        weight, bias = self.weight, self.bias
        if isinstance(pending := pending_of(x), PendingConvolution) and not comes_and_goes(self):
            normalized = pending.normalize(self)
            if normalized is not None:
                return defer(normalized) if self.folds and not self._forward_hooks else normalized.compute()
        x = plain(x)
        if _waits(self, x):
            return defer(PendingNormalization(self, Input(x, self)))
        mean, variance = self.running_mean, self.running_var
        if recording(x) and (
            x.requires_grad or any(p is not None and p.requires_grad for p in (weight, bias))
        ):
            return fixed_batch_norm(x, weight, bias, mean, variance, self.eps)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)

    def forward(self: Any, input: Tensor) -> Tensor:
        """Normalize ``input`` by the running statistics."""
        if is_scripting():
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        else:
            if isinstance(input, Tensor):
                self._check_input_dim(input)
            return self.normalize(input)


def _waits(norm: Any, x: Tensor) -> bool:
    """Whether a normalization of ``x`` may wait for a sum and a clamp to join it."""
    return (
        norm.folds
        and _may_wait(norm, x)
        and x.dim() > 2
        and x.shape[1] == norm.running_mean.shape[0]
        and _packs(x)
    )


class FrozenBatchNorm1d(FrozenBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with fixed statistics that saves no activation while its scale is frozen."""

    stock = nn.BatchNorm1d


class FrozenBatchNorm2d(FrozenBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with fixed statistics that saves no activation while its scale is frozen."""

    stock = nn.BatchNorm2d


class FrozenBatchNorm3d(FrozenBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with fixed statistics that saves no activation while its scale is frozen."""

    stock = nn.BatchNorm3d


class FrozenSyncBatchNorm(FrozenBatchNorm, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` with fixed statistics, and so without communication."""

    stock = nn.SyncBatchNorm


def _packs(x: Tensor) -> bool:
    """Whether a kernel writes the bits of ``x``; float64 and other devices have only the reference."""
    kind = x.device.type
    return (
        x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and kind in ("cpu", "cuda")
        and forced_backend() in (None, kind)
        and not unavailable(kind)
    )


def packs_bits(x: Tensor) -> bool:
    """Whether autograd records operations on ``x`` here and a kernel writes the bits."""
    return recording(x) and x.requires_grad and _packs(x)


def clamp(
    x: Tensor,
    lower: float,
    upper: float,
    inplace: bool,
    stock: Callable[[Tensor], Tensor],
    keep: bool = False,
) -> Tensor:
    """``stock(x)``, a clamp, with what ``x`` stands for or saving bits where one of these can be.

    With ``keep`` the layer after it saves the result, and bits would come on top of it.
    """
    if isinstance(x, Deferred):
        result = clamped(x, lower, upper, inplace, keep)
        if result is not None:
            return result
        x = plain(x)
    return packed_relu(x, lower, upper, inplace=inplace) if packs_bits(x) and not keep else stock(x)


def _packed(module: Any, x: Tensor, lower: float, upper: float) -> Tensor:
    return clamp(x, lower, upper, module.inplace, partial(module.stock.forward, module), module.kept)


class PackedReLU(Rewritten, nn.ReLU):
    """``nn.ReLU`` that saves one bit an element."""

    stock = nn.ReLU
    kept = False  # whether the layer after it saves the result

    def forward(self, input: Tensor) -> Tensor:
        """Clamp ``input``, of any shape, at 0 from below."""
        if is_scripting():
            return F.relu(input, inplace=self.inplace)
        else:
            return _packed(self, input, 0.0, math.inf)


class PackedReLU6(Rewritten, nn.ReLU6):
    """``nn.ReLU6`` that saves one bit an element."""

    stock = nn.ReLU6
    kept = False  # whether the layer after it saves the result

    def forward(self, input: Tensor) -> Tensor:
        """Clamp ``input``, of any shape, to [0, 6]."""
        if is_scripting():
            return F.relu6(input, inplace=self.inplace)
        else:
            return _packed(self, input, 0.0, 6.0)


class PackedHardtanh(Rewritten, nn.Hardtanh):
    """``nn.Hardtanh`` that saves one bit an element."""

    stock = nn.Hardtanh
    kept = False  # whether the layer after it saves the result

    def forward(self, input: Tensor) -> Tensor:
        """Clamp ``input``, of any shape, to [``min_val``, ``max_val``]."""
        if is_scripting():
            return F.hardtanh(input, self.min_val, self.max_val, self.inplace)
        else:
            return _packed(self, input, self.min_val, self.max_val)


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    new.stock: new
    for new in (
        FrozenConv1d,
        FrozenConv2d,
        FrozenConv3d,
        FrozenBatchNorm1d,
        FrozenBatchNorm2d,
        FrozenBatchNorm3d,
        FrozenSyncBatchNorm,
        PackedReLU,
        PackedReLU6,
        PackedHardtanh,
    )
}
