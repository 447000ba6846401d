"""Low-rank adaptation: a frozen weight, and two small matrices beside it that train (Hu et al. 2021).

A layer computes ``y = W x + b + s * B (A x)`` with ``lora_A`` of R rows and ``lora_B`` of R columns; of a
convolution A is one with R outputs and the layer's own kernel, stride and padding, and B is 1x1. B starts at
0, so that the model starts as it was. Where no gradient is recorded a convolution runs once, with
``W + s B A``: two more of few channels would take longer than adding that up.

For the backward pass a layer saves ``x``, or what a linear layer computes it again from
(:mod:`thawkit.ops.frozen.recompute`), if A trains, and ``A x``, which is small. With A frozen at its random
start (LoRA-FA, Zhang et al. 2023) it saves ``A x`` alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import plain
from thawkit.frozen.extension import (
    Extended,
    add_parameter,
    extended,
    is_linear_of_huggingface,
)
from thawkit.frozen.layers import can_replace, fingerprinted, is_scripting, padded
from thawkit.ops.frozen import linear
from thawkit.ops.frozen.autocast import autocast, full_precision
from thawkit.ops.frozen.convolution import (
    CONVOLUTION,
    bias_gradient,
    input_gradient,
    weight_gradient,
)
from thawkit.ops.frozen.packed import Packed, forget, keeps_none, packed_of
from thawkit.ops.frozen.recompute import recipe_of


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters as a policy: ``thawkit.freeze(model, Lora(8, alpha=16))``.

    Attributes:
        rank: R, rows of A.
        alpha: the product is scaled by ``alpha / rank``; None for ``rank``, a scale of 1.
        modules: glob on module names: the layers that get adapters.
        train_a: whether A trains; False is LoRA-FA.

    Raises:
        ThawkitError: a rank below 1.
    """

    rank: int
    alpha: float | None = None
    modules: str = "*"
    train_a: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ThawkitError(f"rank: expected an integer of at least 1, got {self.rank!r}")

    def __str__(self) -> str:
        word = "lora" if self.train_a else "lora-fa"
        alpha = "" if self.alpha is None else f", alpha={self.alpha:g}"
        return f"{word}:{self.rank}{alpha}" + ("" if self.modules == "*" else f":{self.modules}")


class _LoraLinear(torch.autograd.Function):
    """``x Wᵀ + b + s (x Aᵀ) Bᵀ``.

    ``x Aᵀ``, which is saved, is an output as well, so that gradients of gradients pass through it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        packed: Packed | None,
        function: Callable[..., Tensor] | None,
        *recipe_inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        h = F.linear(x, a)
        y = linear.product(x, weight, bias, packed)
        if y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(h.view(-1, h.shape[-1]), b.to(h.dtype).t(), alpha=scale)
        else:
            y = y.add_(F.linear(h, b), alpha=scale)
        y = linear.no_view(y)
        for_x, for_weight, for_bias, for_a, for_b = ctx.needs_input_grad[:5]
        again = recipe_inputs if function else (x,)
        ctx.save_for_backward(
            h if for_b else None,
            weight if for_x else None,
            bias if for_bias else None,
            a if for_x or for_a else None,
            b,
            *(again if for_a or for_weight else ()),
        )
        ctx.scale, ctx.packed, ctx.function = scale, packed, function
        ctx.set_materialize_grads(False)
        return y, h

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_h: Tensor | None) -> tuple[Tensor | None, ...]:
        h, weight, bias, a, b, *saved = ctx.saved_tensors
        for_x, for_weight, for_bias, for_a, for_b = ctx.needs_input_grad[:5]
        upstream = grad if grad is not None else grad_h
        nothing = (None,) * (len(ctx.needs_input_grad) - 5)
        if upstream is None:
            return *(None,) * 5, *nothing
        x: Any = ctx.function(*saved) if ctx.function and saved else next(iter(saved), None)
        of_x = of_weight = of_bias = of_a = of_b = None
        dtype, sizes = upstream.dtype, upstream.shape[:-1]
        with full_precision(upstream):
            low: Any = None if grad_h is None else grad_h.reshape(-1, grad_h.shape[-1])
            rows = None if grad is None else grad.reshape(-1, grad.shape[-1])
            if rows is not None:
                if for_x or for_a:
                    through = (rows @ b.to(dtype)) * ctx.scale
                    low = through if low is None else low + through
                if for_weight:
                    of_weight = rows.t() @ x.reshape(-1, x.shape[-1]).to(dtype)
                if for_bias:
                    of_bias = bias_gradient(rows, 1, bias.dtype)
                if for_b:
                    of_b = (rows.t() @ h.reshape(-1, h.shape[-1]).to(dtype)).mul(ctx.scale).to(b.dtype)
            if for_a:
                of_a = (low.t() @ x.reshape(-1, x.shape[-1]).to(dtype)).to(a.dtype)
            if for_x:
                a = a.to(dtype)
                whole = None if rows is None else linear.input_gradient(rows, weight, ctx.packed)
                flat = low @ a if whole is None else torch.addmm(whole, low, a)
                of_x = flat.view(*sizes, flat.shape[-1])
        return of_x, of_weight, of_bias, of_a, of_b, *nothing


class _LoraConvolution(torch.autograd.Function):
    """As :class:`_LoraLinear`, ``x`` being ``(N, C, *sizes)``; A's geometry is W's, B is 1x1."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        geometry: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        convolution = CONVOLUTION[weight.dim() - 3]
        h = convolution(x, a, None, *geometry)
        y = convolution(x, weight, bias, *geometry)
        if y.is_contiguous() and h.is_contiguous():
            matrix = b.to(h.dtype).flatten(1).expand(len(y), -1, -1)
            y.flatten(2).baddbmm_(matrix, h.flatten(2), alpha=scale)
        else:
            y.add_(convolution(h, b), alpha=scale)
        for_x, for_weight, for_bias, for_a, for_b = ctx.needs_input_grad[:5]
        ctx.save_for_backward(
            x if for_a or for_weight else None,
            h if for_b else None,
            weight if for_x or for_weight else None,
            bias if for_bias else None,
            a if for_x or for_a else None,
            b,
        )
        ctx.layout = x.shape, x.stride()
        ctx.scale, ctx.geometry = scale, geometry
        ctx.set_materialize_grads(False)
        return y, h

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_h: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h, weight, bias, a, b = ctx.saved_tensors
        for_x, for_weight, for_bias, for_a, for_b = ctx.needs_input_grad[:5]
        upstream = grad if grad is not None else grad_h
        if upstream is None:
            return (None,) * 7
        of_x = of_weight = of_bias = of_a = of_b = None
        dtype, dims = upstream.dtype, b.dim() - 2
        plain = (1,) * dims, (0,) * dims, (1,) * dims
        with full_precision(upstream):
            low: Any = grad_h
            if grad is not None:
                if for_x or for_a:
                    back = (b.to(dtype) * ctx.scale).transpose(0, 1)
                    through = CONVOLUTION[dims - 1](grad, back)
                    low = through if low is None else low + through
                if for_weight:
                    of_weight = weight_gradient(grad, x.to(dtype), weight.to(dtype), ctx.geometry, 1)
                if for_bias:
                    of_bias = bias_gradient(grad, 1, bias.dtype)
                if for_b:
                    of_b = weight_gradient(grad, h.to(dtype), b.to(dtype), plain, 1)
                    of_b = of_b.mul(ctx.scale).to(b.dtype)
            if for_a:
                of_a = weight_gradient(low, x.to(dtype), a.to(dtype), ctx.geometry, 1).to(a.dtype)
            if for_x:
                of_x = input_gradient(low, ctx.layout, a.to(dtype), ctx.geometry, 1)
                if grad is not None:
                    of_x = of_x + input_gradient(grad, ctx.layout, weight.to(dtype), ctx.geometry, 1)
        return of_x, of_weight, of_bias, of_a, of_b, None, None


class LoraLayer(Extended):
    """Base of the layers with adapters. ``lora_scale`` is s."""

    extras = ("lora_A", "lora_B")
    transposed = False  # whether the weight is (in, out)

    def keeps_input(self: Any) -> bool:
        """A trainable A needs the input."""
        return self.lora_A.requires_grad or self.weight.requires_grad

    def product(self: Any) -> Tensor:
        """``s B A``, of the weight's shape."""
        a, b = self.lora_A, self.lora_B
        product = self.lora_scale * (b.flatten(1) @ a.flatten(1))
        return product.t() if self.transposed else product.view(self.weight.shape)

    def detach(self: Any, merge: bool) -> None:
        """Become the stock layer again; add the product to the weight if ``merge``."""
        with torch.no_grad():
            if merge:
                self.weight.add_(self.product())
        for name in self.extras:
            del self._parameters[name]
        del self.lora_scale
        self.__class__ = self.stock


class LoraLinear(LoraLayer, nn.Linear):
    """``nn.Linear`` with ``lora_A`` (R, in) and ``lora_B`` (out, R)."""

    stock = nn.Linear

    def forward(self: Any, input: Tensor) -> Tensor:
        """Apply both products to ``input``, ``(*, in)``."""
        if is_scripting():
            low = F.linear(F.linear(input, self.lora_A), self.lora_B)
            return F.linear(input, self.weight, self.bias) + self.lora_scale * low
        else:
            return lora_linear(self, plain(input))


def lora_linear(module: Any, x: Tensor) -> Tensor:
    """Apply a linear layer with adapters to ``x``, ``(*, in)``."""
    a, b, scale = module.lora_A, module.lora_B, module.lora_scale
    weight = module.weight.t() if module.transposed else module.weight
    packed = linear.usable(packed_of(module), x, weight) if can_replace(x) else None
    if extended(x):
        recipe = recipe_of(x)
        function, inputs = (recipe.function, recipe.inputs) if recipe else (None, ())
        x = autocast(x)
        return _LoraLinear.apply(x, weight, module.bias, a, b, scale, packed, function, *inputs)[0]
    low = F.linear(F.linear(x, a), b)
    if packed is not None and not torch.is_grad_enabled():
        return linear.product(x, weight, module.bias, packed).add_(low, alpha=scale)
    return module.stock.forward(module, x) + scale * low


class _LoraConv(LoraLayer):
    def forward(self: Any, input: Tensor) -> Tensor:
        """Apply both products to ``input``, ``(N, C, *sizes)`` or ``(C, *sizes)``."""
        if is_scripting():
            product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
            whole = self.weight + self.lora_scale * product.view_as(self.weight)
            return self._conv_forward(input, whole, self.bias)
        else:
            return _convolution(self, plain(input))


def _convolution(module: Any, x: Tensor) -> Tensor:
    a, b, scale = module.lora_A, module.lora_B, module.lora_scale
    if not extended(x):
        if (merged := _merged(module, x)) is not None:
            return module._conv_forward(x, merged, module.bias)
        low = CONVOLUTION[b.dim() - 3](module._conv_forward(x, a, None), b)
        return module.stock.forward(module, x) + scale * low
    forget(module)  # a merged weight is old after the next step, and takes memory until then
    x, padding = padded(module, autocast(x))
    geometry = module.stride, padding, module.dilation
    if x.dim() == b.dim():
        return _LoraConvolution.apply(x, module.weight, module.bias, a, b, scale, geometry)[0]
    single = x.unsqueeze(0)
    return _LoraConvolution.apply(single, module.weight, module.bias, a, b, scale, geometry)[0].squeeze(0)


def _merged(module: Any, x: Tensor) -> Tensor | None:
    """The weight with the product in it, kept until one of them changes; None where it must not be kept."""
    parts = module.weight, module.lora_A, module.lora_B
    if torch.is_grad_enabled() or not can_replace(x) or torch.is_autocast_enabled("cpu"):
        return None
    # in half precision what is small beside the weight would be rounded away
    if keeps_none(module) or module.weight.dtype not in _EXACT or not fingerprinted(module, *parts):
        return None
    key = "merged", module.lora_scale
    if not packed_of(module).holds(key):
        forget(module)
    return packed_of(module).get(parts, key, lambda: (module.weight + module.product()).detach())


_EXACT = (torch.float32, torch.float64)


class LoraConv1d(_LoraConv, nn.Conv1d):
    """``nn.Conv1d`` with ``lora_A`` (R, in, k) and ``lora_B`` (out, R, 1)."""

    stock = nn.Conv1d


class LoraConv2d(_LoraConv, nn.Conv2d):
    """``nn.Conv2d`` with ``lora_A`` (R, in, kh, kw) and ``lora_B`` (out, R, 1, 1)."""

    stock = nn.Conv2d


class LoraConv3d(_LoraConv, nn.Conv3d):
    """``nn.Conv3d`` with ``lora_A`` (R, in, *kernel) and ``lora_B`` (out, R, 1, 1, 1)."""

    stock = nn.Conv3d


_CLASSES: dict[type[nn.Module], type[LoraLayer]] = {
    new.stock: new for new in (LoraLinear, LoraConv1d, LoraConv2d, LoraConv3d)
}


def adaptable(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of the extendable ``layers`` that can have adapters: a product per group has no small factors."""
    return {name: layer for name, layer in layers.items() if getattr(layer, "groups", 1) == 1}


def attach(module: nn.Module, name: str, settings: Lora) -> None:
    """Give a layer adapters.

    A is drawn as ``nn.Linear``'s weight is, from torch's seed (``torch.manual_seed``) and ``name``, without
    taking anything from the generator; B is 0.
    """
    weight: Any = module.weight
    transposed = is_linear_of_huggingface(type(module))
    outs, *ins = weight.t().shape if transposed else weight.shape
    bound = torch.Size(ins).numel() ** -0.5
    generator = torch.Generator().manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
    a = torch.empty(settings.rank, *ins, device="cpu").uniform_(-bound, bound, generator=generator)
    add_parameter(module, "lora_A", a.to(weight))
    add_parameter(module, "lora_B", weight.new_zeros(outs, settings.rank, *[1] * (len(ins) - 1)))
    module.lora_A.requires_grad_(settings.train_a)
    module.lora_scale = 1.0 if settings.alpha is None else settings.alpha / settings.rank  # type: ignore[assignment]
    if transposed:
        from thawkit.frozen.huggingface_layers import LoraConv1D

        module.__class__ = LoraConv1D
    else:
        module.__class__ = _CLASSES[type(module)]
