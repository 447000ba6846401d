"""Training some channels of a weight: a slice of it is a parameter, the rest stays frozen.

Of a weight ``W`` (out, in, ...) a subset of the input channels trains, ``W[:, chosen]``, or one of the output
channels, ``W[chosen]``. The slice is a parameter ``weight_channels`` of its own, so its gradient and the
optimizer's state are as small as it is, and weight decay moves nothing that is frozen.

With input channels a layer saves ``x[:, chosen]`` for the backward pass instead of ``x``; with output
channels it saves all of ``x`` and computes the gradient from ``dY[:, chosen]``, less work. Every layer of a
model takes the same share. In a grouped convolution each group trains the same of its channels, and in a
depthwise one an input channel's filters train whole.

``weight`` is a frozen parameter that holds everything: the slice is written into it at each forward and
before it is saved, so ``state_dict`` has the keys and shapes that it had.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

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
    stock_class,
)
from thawkit.frozen.layers import fingerprinted, is_scripting, padded
from thawkit.ops.frozen.autocast import full_precision
from thawkit.ops.frozen.convolution import (
    CONVOLUTION,
    bias_gradient,
    input_gradient,
    weight_gradient,
)
from thawkit.ops.frozen.linear import no_view
from thawkit.ops.frozen.packed import Fingerprint

_BUFFERS = ("channel_of_weight", "channel_of_output", "channel_of_input")
_KEPT = "_thawkit_channels"  # on an activation: its chosen channels, which several layers may save


@dataclass(frozen=True)
class Channels:
    """A share of the channels of each weight as a policy: ``thawkit.freeze(model, Channels(0.25))``.

    Attributes:
        fraction: share of the channels that trains, above 0 and below 1; at least one does.
        dim: ``in`` for input channels, ``out`` for output channels.
        by: which ones: ``even``, evenly spaced from the first, or ``norm``, those whose weights have the
            largest Euclidean norm when the model is frozen (of equal ones the first).
        modules: glob on module names: the layers of which channels train.

    Raises:
        ThawkitError: a value that is none of these.
    """

    fraction: float
    dim: str = "in"
    by: str = "even"
    modules: str = "*"

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, (int, float)) and 0 < self.fraction < 1):
            raise ThawkitError(f"fraction: expected a number above 0 and below 1, got {self.fraction!r}")
        if self.dim not in ("in", "out"):
            raise ThawkitError(f"dim: expected 'in' or 'out', got {self.dim!r}")
        if self.by not in ("even", "norm"):
            raise ThawkitError(f"by: expected 'even' or 'norm', got {self.by!r}")

    def __str__(self) -> str:
        words = [f"channels:{self.fraction:g}", *(w for w in (self.dim, self.by) if w not in ("in", "even"))]
        return ":".join(words if self.modules == "*" else [*words, self.modules])


@dataclass(frozen=True)
class Choice:
    """Which channels of one layer train.

    Attributes:
        dim: of the weight as (out, in, ...): 1 for input channels, 0 for output channels.
        of_weight: indices along ``dim`` of the weight.
        of_input: indices of the input's channels that are saved; None for all.
        of_output: indices of the output's channels whose gradient is read; None for all.
        groups: of the convolution that gives the slice's gradient.
    """

    dim: int
    of_weight: tuple[int, ...]
    of_input: tuple[int, ...] | None
    of_output: tuple[int, ...] | None
    groups: int


def choose(module: nn.Module, settings: Channels) -> Choice | None:
    """Choose the channels of a linear or convolutional layer; None where all of them would train."""
    weight: Any = module.weight.detach()  # type: ignore[operator]  # a Parameter
    if is_linear_of_huggingface(stock_class(module)):
        weight = weight.t()
    groups = getattr(module, "groups", 1)
    outs, ins = weight.shape[0] // groups, weight.shape[1]  # of a group
    if settings.dim == "in" and groups > 1 and ins == 1:  # depthwise: a group is an input channel
        chosen = _subset(weight.reshape(groups, -1), settings)
        if len(chosen) == groups:
            return None
        filters = tuple(c * outs + i for c in chosen for i in range(outs))
        return Choice(0, filters, chosen, filters, len(chosen))
    if settings.dim == "in":
        chosen = _subset(weight.transpose(0, 1).flatten(1), settings)
        inputs = tuple(group * ins + c for group in range(groups) for c in chosen)
        return None if len(chosen) == ins else Choice(1, chosen, inputs, None, groups)
    chosen = _subset(weight.reshape(groups, outs, -1).transpose(0, 1).flatten(1), settings)
    outputs = tuple(group * outs + c for group in range(groups) for c in chosen)
    return None if len(chosen) == outs else Choice(0, outputs, None, outputs, groups)


def _subset(weights: Tensor, settings: Channels) -> tuple[int, ...]:
    """Indices of the rows of ``weights``, one row a channel, in ascending order."""
    count = len(weights)
    size = min(count, max(1, math.floor(settings.fraction * count + 0.5)))
    if settings.by == "even":
        return tuple(index * count // size for index in range(size))
    norms = weights.double().norm(dim=1)
    return tuple(sorted(norms.argsort(descending=True, stable=True)[:size].tolist()))


@dataclass(frozen=True)
class _Indices:
    """A :class:`Choice` as tensors on the layer's device."""

    dim: int
    of_weight: Tensor
    of_output: Tensor | None
    of_input: Tensor | None
    groups: int

    def whole(self, weight: Tensor, part: Tensor) -> Tensor:
        """The weight with the slice in it, through which the slice gets its gradient."""
        return weight.index_copy(self.dim, self.of_weight, part.to(weight.dtype))

    def output(self, grad: Tensor, dim: int) -> Tensor:
        """The output channels whose gradient is read."""
        return grad if self.of_output is None else grad.index_select(dim, self.of_output)

    def scattered(self, into: Tensor | None, saved: Tensor, layout: tuple[Any, ...], dim: int) -> Tensor:
        """Add the gradient of the chosen input channels to that of all."""
        if into is None:
            into = saved.new_zeros(layout[0])
        return into + saved if self.of_input is None else into.index_add(dim, self.of_input, saved)


class _ChannelLinear(torch.autograd.Function):
    """``x Wᵀ + b`` with a gradient for a slice of W.

    The saved channels of ``x`` are an output as well, so that gradients of gradients pass through them.
    ``weight`` holds the slice; ``part`` is saved so that overwriting it before the backward is an error.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        part: Tensor,
        bias: Tensor | None,
        indices: _Indices,
        kept: list[Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        saved = kept[0].detach() if kept else None
        for_x, _, for_part, for_bias = ctx.needs_input_grad[:4]
        whole_input = x if for_part and saved is None else None
        ctx.save_for_backward(saved, whole_input, weight if for_x else None, part, bias if for_bias else None)
        ctx.indices, ctx.layout = indices, (x.shape, x.stride())
        ctx.set_materialize_grads(False)
        return no_view(F.linear(x, weight, bias)), saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_saved: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, x, weight, part, bias = ctx.saved_tensors
        for_x, _, for_part, for_bias = ctx.needs_input_grad[:4]
        indices: _Indices = ctx.indices
        of_x = of_part = of_bias = None
        if grad is not None:
            dtype = grad.dtype
            with full_precision(grad):
                rows = grad.reshape(-1, grad.shape[-1])
                if for_x:
                    if torch.is_grad_enabled():  # for a gradient of this gradient the slice must appear
                        weight = indices.whole(weight, part)
                    of_x = (rows @ weight.to(dtype)).view(ctx.layout[0])
                if for_part:
                    x = x if saved is None else saved
                    of_part = indices.output(rows, 1).t() @ x.reshape(-1, x.shape[-1]).to(dtype)
                    of_part = of_part.to(part.dtype)
                if for_bias:
                    of_bias = bias_gradient(rows, 1, bias.dtype)
        if for_x and grad_saved is not None:
            of_x = indices.scattered(of_x, grad_saved, ctx.layout, -1)
        return of_x, None, of_part, of_bias, None, None


class _ChannelConvolution(torch.autograd.Function):
    """As :class:`_ChannelLinear`, ``x`` being ``(N, C, *sizes)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        part: Tensor,
        bias: Tensor | None,
        indices: _Indices,
        kept: list[Tensor],
        geometry: tuple[Any, ...],
        groups: int,
    ) -> tuple[Tensor, Tensor | None]:
        saved = kept[0].detach() if kept else None
        for_x, _, for_part, for_bias = ctx.needs_input_grad[:4]
        whole_input = x if for_part and saved is None else None
        ctx.save_for_backward(saved, whole_input, weight if for_x else None, part, bias if for_bias else None)
        ctx.indices, ctx.layout, ctx.geometry, ctx.groups = indices, (x.shape, x.stride()), geometry, groups
        ctx.set_materialize_grads(False)
        convolution: Any = CONVOLUTION[weight.dim() - 3]
        return convolution(x, weight, bias, *geometry, groups), saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_saved: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, x, weight, part, bias = ctx.saved_tensors
        for_x, _, for_part, for_bias = ctx.needs_input_grad[:4]
        indices: _Indices = ctx.indices
        of_x = of_part = of_bias = None
        if grad is not None:
            dtype = grad.dtype
            with full_precision(grad):
                if for_x:
                    if torch.is_grad_enabled():
                        weight = indices.whole(weight, part)
                    of_x = input_gradient(grad, ctx.layout, weight.to(dtype), ctx.geometry, ctx.groups)
                if for_part:
                    of_part = weight_gradient(
                        indices.output(grad, 1),
                        (x if saved is None else saved).to(dtype),
                        part.to(dtype),
                        ctx.geometry,
                        indices.groups,
                    ).to(part.dtype)
                if for_bias:
                    of_bias = bias_gradient(grad, 1, bias.dtype)
        if for_x and grad_saved is not None:
            of_x = indices.scattered(of_x, grad_saved, ctx.layout, 1)
        return of_x, None, of_part, of_bias, None, None, None, None


class ChannelLayer(Extended):
    """Base of the layers of which some channels train.

    ``weight_channels`` is the trainable slice. The indices of a :class:`Choice` are buffers, not saved.
    """

    extras = ("weight_channels",)
    transposed = False  # whether the weight is (in, out)

    def keeps_input(self: Any) -> bool:
        """Output channels need the whole input; input channels save a copy of some of it."""
        return self.weight.requires_grad or (
            self.channel_of_input is None and self.weight_channels.requires_grad
        )

    def weight_dim(self: Any) -> int:
        """The dimension of ``weight`` along which channels were chosen."""
        return 1 - self.channel_dim if self.transposed else self.channel_dim

    def refresh(self: Any) -> None:
        """Write the slice into the weight; autograd need not notice, the values that it saved are these."""
        part = self.weight_channels.detach()
        self.weight.data.index_copy_(self.weight_dim(), self.channel_of_weight, part)

    def whole(self: Any) -> Tensor:
        """The weight with the slice in it, by operators that everything can follow."""
        return self.weight.index_copy(self.weight_dim(), self.channel_of_weight, self.weight_channels)

    def detach(self: Any, merge: bool) -> None:
        """Become the stock layer again, with the slice in its weight."""
        self.refresh()
        del self._parameters["weight_channels"]
        for name in _BUFFERS:
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)
        for name in ("channel_dim", "channel_groups", "channel_key"):
            del self.__dict__[name]
        self.__class__ = self.stock

    def _save_to_state_dict(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.refresh()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "weight_channels"]

    def _load_from_state_dict(self: Any, *args: Any, **kwargs: Any) -> None:
        part = self._parameters.pop("weight_channels")
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            self._parameters["weight_channels"] = part
        loaded = self.weight.detach().index_select(self.weight_dim(), self.channel_of_weight)
        with torch.no_grad():
            if part.is_meta and not loaded.is_meta:  # load_state_dict(assign=True)
                self.weight_channels = nn.Parameter(loaded, part.requires_grad)
            else:
                part.copy_(loaded)


def _kept(module: Any, x: Tensor, dim: int) -> list[Tensor]:
    """The chosen channels of ``x``, copied once for all layers that choose the same of it."""
    if module.channel_of_input is None or not module.weight_channels.requires_grad:
        return []
    source = x.detach()
    if x.is_leaf or x.is_inference():  # somebody else's, or without a version to tell whether it changed
        return [source.index_select(dim, module.channel_of_input)]
    key = x._version, module.channel_key, dim
    if getattr(x, _KEPT, (None,))[0] != key:
        setattr(x, _KEPT, (key, source.index_select(dim, module.channel_of_input)))
    return [getattr(x, _KEPT)[1]]


def _indices(module: Any) -> _Indices:
    return _Indices(
        module.channel_dim,
        module.channel_of_weight,
        module.channel_of_output,
        module.channel_of_input,
        module.channel_groups,
    )


def _acts(module: Any, x: Tensor) -> bool:
    return extended(x) and not module.weight.requires_grad


_WRITTEN: WeakKeyDictionary[nn.Module, Fingerprint] = WeakKeyDictionary()  # weights that hold their slice


def _stock_forward_on_refreshed(module: Any, x: Tensor) -> Tensor | None:
    """Run the stock forward where nothing is recorded or followed; None elsewhere."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return None
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():  # type: ignore[attr-defined]
        return None
    parts = module.weight, module.weight_channels
    if not fingerprinted(module, *parts):
        module.refresh()
    elif (written := _WRITTEN.get(module)) is None or not written.matches(*parts):
        module.refresh()
        _WRITTEN[module] = Fingerprint(*parts)
    return module.stock.forward(module, x)


def channel_linear(module: Any, x: Tensor) -> Tensor:
    """Apply a linear layer of which some channels train to ``x``, ``(*, in)``."""
    if _acts(module, x):
        module.refresh()
        weight, part = module.weight, module.weight_channels
        if module.transposed:
            weight, part = weight.t(), part.t()
        return _ChannelLinear.apply(x, weight, part, module.bias, _indices(module), _kept(module, x, -1))[0]
    y = _stock_forward_on_refreshed(module, x)
    if y is not None:
        return y
    whole = module.whole()
    return F.linear(x, whole.t() if module.transposed else whole, module.bias)


class ChannelLinear(ChannelLayer, nn.Linear):
    """``nn.Linear`` of which some channels train."""

    stock = nn.Linear

    def forward(self: Any, input: Tensor) -> Tensor:
        """Multiply ``input``, ``(*, in)``."""
        if is_scripting():
            whole = self.weight.index_copy(self.channel_dim, self.channel_of_weight, self.weight_channels)
            return F.linear(input, whole, self.bias)
        else:
            return channel_linear(self, plain(input))


class _ChannelConv(ChannelLayer):
    def forward(self: Any, input: Tensor) -> Tensor:
        """Convolve ``input``, ``(N, C, *sizes)`` or ``(C, *sizes)``."""
        if is_scripting():
            whole = self.weight.index_copy(self.channel_dim, self.channel_of_weight, self.weight_channels)
            return self._conv_forward(input, whole, self.bias)
        else:
            return _convolution(self, plain(input))


def _convolution(module: Any, x: Tensor) -> Tensor:
    if not _acts(module, x):
        y = _stock_forward_on_refreshed(module, x)
        return module._conv_forward(x, module.whole(), module.bias) if y is None else y
    module.refresh()
    x, padding = padded(module, x)
    single = x.dim() < module.weight.dim()
    if single:
        x = x.unsqueeze(0)
    geometry = module.stride, padding, module.dilation
    parameters = module.weight, module.weight_channels, module.bias
    kept = _kept(module, x, 1)
    y = _ChannelConvolution.apply(x, *parameters, _indices(module), kept, geometry, module.groups)[0]
    return y.squeeze(0) if single else y


class ChannelConv1d(_ChannelConv, nn.Conv1d):
    """``nn.Conv1d`` of which some channels train."""

    stock = nn.Conv1d


class ChannelConv2d(_ChannelConv, nn.Conv2d):
    """``nn.Conv2d`` of which some channels train."""

    stock = nn.Conv2d


class ChannelConv3d(_ChannelConv, nn.Conv3d):
    """``nn.Conv3d`` of which some channels train."""

    stock = nn.Conv3d


_CLASSES: dict[type[nn.Module], type[ChannelLayer]] = {
    new.stock: new for new in (ChannelLinear, ChannelConv1d, ChannelConv2d, ChannelConv3d)
}


def attach(module: nn.Module, choice: Choice) -> None:
    """Let the channels of ``choice`` train, and freeze the weight."""
    layer: Any = module
    transposed = is_linear_of_huggingface(type(module))
    device = layer.weight.device

    def index(values: tuple[int, ...] | None) -> Tensor | None:
        return None if values is None else torch.tensor(values, device=device)

    of_weight = torch.tensor(choice.of_weight, device=device)
    dim = 1 - choice.dim if transposed else choice.dim
    add_parameter(layer, "weight_channels", layer.weight.detach().index_select(dim, of_weight))
    layer.weight.requires_grad_(False)
    indices = (of_weight, index(choice.of_output), index(choice.of_input))
    for name, values in zip(_BUFFERS, indices, strict=True):
        layer.register_buffer(name, values, persistent=False)
    layer.channel_dim, layer.channel_groups = choice.dim, choice.groups
    layer.channel_key = hashlib.sha1(repr(choice.of_input).encode()).hexdigest()
    if transposed:
        from thawkit.frozen.huggingface_layers import ChannelConv1D

        layer.__class__ = ChannelConv1D
    else:
        layer.__class__ = _CLASSES[type(module)]
