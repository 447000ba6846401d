"""Functions that a model's own ``forward`` calls, as :func:`torch.nn.functional.relu`, saving less as well.

A module that stands in the model can be rewritten; a function that is called cannot. So modules that call one
of the functions below get a pair of hooks, which put a mode in force while their ``forward`` runs: a function
of the table is then computed by the operator that its module would use, where that saves anything. Which
modules these are is seen when an example runs; without one it is the whole model.

The mode also covers what is called by the module's children. A stock activation among them, left in place
because the layer after it saves the same storage, then writes its bits for nothing, one 32nd more.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode

from thawkit.frozen.deferred import FUNCTIONS, Deferred, plain, settle_written
from thawkit.frozen.folded import in_stock_order
from thawkit.frozen.layers import Rewritten, can_replace, clamp, functional_convolution, packs_bits
from thawkit.frozen.measure import running
from thawkit.frozen.pool_layers import averages
from thawkit.frozen.saved_hooks import hooks_in_force
from thawkit.frozen.transformer_layers import layer_norm, recomputable
from thawkit.ops.frozen import (
    adaptive_avg_pool,
    avg_pool,
    packed_abs,
    packed_clamp,
    packed_dropout,
    packed_hardsigmoid,
    packed_leaky_relu,
    packed_max_pool,
    packed_threshold,
)
from thawkit.ops.frozen.packed import version_of


def _relu(stock: Callable, input: Tensor, inplace: bool = False) -> Tensor:
    return clamp(input, 0.0, math.inf, inplace, partial(stock, inplace=inplace) if inplace else stock)


def _relu_method(stock: Callable, input: Tensor) -> Tensor:
    return clamp(input, 0.0, math.inf, False, stock)


def _relu_inplace(stock: Callable, input: Tensor) -> Tensor:
    return clamp(input, 0.0, math.inf, True, stock)


def _relu6(stock: Callable, input: Tensor, inplace: bool = False) -> Tensor:
    return clamp(input, 0.0, 6.0, inplace, partial(stock, inplace=inplace))


def _hardtanh(
    stock: Callable, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    again = partial(stock, min_val=min_val, max_val=max_val, inplace=inplace)
    return clamp(input, min_val, max_val, inplace, again)


def _bits(operator: Callable) -> Callable:
    """``operator`` where a kernel writes its bits; it takes what the function of torch does."""

    def call(stock: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        input = plain(input)
        return operator(input, *args, **kwargs) if packs_bits(input) else stock(input, *args, **kwargs)

    return call


@_bits
def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return packed_leaky_relu(input, negative_slope, inplace=inplace)


@_bits
def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    return packed_threshold(input, threshold, value, inplace=inplace)


@_bits
def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return packed_hardsigmoid(input, inplace=inplace)


@_bits
def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return packed_dropout(input, p, training, inplace=inplace)


def _clamp(stock: Callable, input: Tensor, min: Any = None, max: Any = None, **more: Any) -> Tensor:
    input = plain(input)
    numbers = [bound for bound in (min, max) if bound is not None]
    if more or not numbers or not all(isinstance(n, (int, float)) for n in numbers) or not packs_bits(input):
        return stock(input, min, max, **more)
    return packed_clamp(input, min, max)


def _abs(stock: Callable, input: Tensor) -> Tensor:
    input = plain(input)
    return packed_abs(input) if packs_bits(input) else stock(input)


def _max_pool(dims: int) -> Callable:
    def call(
        stock: Callable,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        input = plain(input)
        if return_indices or not packs_bits(input):
            options = (stride, padding, dilation, ceil_mode, *((True,) if return_indices else ()))
            return stock(input, kernel_size, *options)
        return packed_max_pool(input, dims, kernel_size, stride or None, padding, dilation, ceil_mode)

    return call


def _avg_pool(dims: int) -> Callable:
    def call(stock: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        input = plain(input)
        if not averages(input):
            return stock(input, *args, **kwargs)
        return avg_pool(input, dims, *args, **kwargs)

    return call


def _adaptive_avg_pool(dims: int) -> Callable:
    def call(stock: Callable, input: Tensor, output_size: Any) -> Tensor:
        input = plain(input)
        return adaptive_avg_pool(input, dims, output_size) if averages(input) else stock(input, output_size)

    return call


def _gelu(stock: Callable, input: Tensor, *, approximate: str = "none") -> Tensor:
    return recomputable(partial(stock, approximate=approximate), plain(input))


def _silu(stock: Callable, input: Tensor, inplace: bool = False) -> Tensor:
    input = plain(input)
    return stock(input, inplace=True) if inplace else recomputable(stock, input)


def _layer_norm(
    stock: Callable,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return recomputable(partial(layer_norm, normalized_shape, eps), plain(input), weight, bias)


def _convolution(
    stock: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    input = plain(input)
    geometry = stride, padding, dilation, groups
    result = functional_convolution(input, weight, bias, *geometry)
    return stock(input, weight, bias, *geometry) if result is None else result


def _ordered(stock: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return stock(in_stock_order(plain(input)), *args, **kwargs)


def _view(stock: Callable, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """A view; of a copy where that cannot be, for strides that a fused convolution left to what came of it.

    A tensor that lies so for other reasons is viewed, too, where the stock model would have failed.
    """
    input = in_stock_order(plain(input))
    try:
        return stock(input, *shape, **kwargs)
    except RuntimeError:
        if input.is_contiguous():
            raise
        return stock(input.contiguous(), *shape, **kwargs)


# whether these give a view, a copy or the tensor itself depends on its strides, too
_ALIKE = {Tensor.to, Tensor.reshape_as, Tensor.view_as, Tensor.unflatten, torch.unflatten}
_BY_STRIDES = (torch.as_strided, Tensor.as_strided)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_OF_LAYOUT = (
    torch.flatten,
    Tensor.flatten,
    torch.ravel,
    Tensor.ravel,
    torch.reshape,
    Tensor.reshape,
    Tensor.contiguous,
    *_BY_STRIDES,
)
_TABLE: dict[Callable, Callable] = {
    F.relu: _relu,
    torch.relu: _relu_method,
    Tensor.relu: _relu_method,
    torch.relu_: _relu_inplace,
    Tensor.relu_: _relu_inplace,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.threshold: _threshold,
    F.hardsigmoid: _hardsigmoid,
    F.dropout: _dropout,
    torch.clamp: _clamp,
    torch.clip: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clip: _clamp,
    torch.abs: _abs,
    Tensor.abs: _abs,
    F.gelu: _gelu,
    F.silu: _silu,
    F.layer_norm: _layer_norm,
    Tensor.view: _view,
    **dict.fromkeys(_OF_LAYOUT, _ordered),
    **{f: _max_pool(d) for d, f in enumerate((F.max_pool1d, F.max_pool2d, F.max_pool3d), 1)},
    **{f: _max_pool(d) for d, f in enumerate((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), 1)},
    **{f: _avg_pool(d) for d, f in enumerate((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), 1)},
    **{
        f: _adaptive_avg_pool(d)
        for d, f in enumerate((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), 1)
    },
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
}
FUNCTIONS.update({function: partial(call, function) for function, call in _TABLE.items()})


def _has_layouts(args: Any) -> bool:
    """Whether a tensor lies otherwise if its channels come last."""
    x = args[0] if args and isinstance(args[0], Tensor) else None
    return x is not None and x.dim() == 4 and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1


class _Calls(TorchFunctionMode):
    """Computes the functions of the table by the operators that save less."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = FUNCTIONS.get(func)
        if replacement is None or not args or not can_replace(args[0]) or not _runs_by_itself():
            return func(*args, **(kwargs or {}))
        result = replacement(*args, **(kwargs or {}))
        if isinstance(args[0], Deferred):
            settle_written(args[0], result)
        return result


def _runs_by_itself() -> bool:
    """Whether the innermost module runs as a whole, and no part of it under a checkpoint of its own.

    Such a part runs again in the backward pass, without the module, and must then save the same.
    """
    stack = vars(_active).get("stack", [])
    return not stack or stack[-1].hooks == hooks_in_force()


class _Seen(TorchFunctionMode):
    """Notes who calls a function of the table, and what of the model's tensors is viewed."""

    def __init__(self, stack: list[str], calls: Calls) -> None:
        super().__init__()
        self._stack, self._calls = stack, calls
        self.viewed: list[tuple[Tensor, int]] = []
        self.depth = 0  # of hooks on saved tensors: what measures has one, checkpoints come on top

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_layout = func in _OF_LAYOUT or func is Tensor.view
        if func in FUNCTIONS and (not of_layout or _has_layouts(args)):
            self._calls.callers.add(self._stack[-1])
            if func in _BY_STRIDES:
                self._calls.need_strides = True
        self.depth = max(self.depth, len(hooks_in_force()))
        result = func(*args, **(kwargs or {}))
        if of_layout or func in _ALIKE:
            given = [x for x in (*args, *(kwargs or {}).values(), result) if isinstance(x, Tensor)]
            self.viewed += [(x, version_of(x)) for x in given if x.dim() > 2]
        return result


@dataclass
class Calls:
    """What the stock model's code does when an example runs.

    Attributes:
        callers: names of the modules of which the own code calls a function of the table.
        need_strides: whether a feature map is read by its strides, or it, or what is a view of it or a copy
            for its strides, is written to later: a copy would then not do for a view, nor a view for a copy.
    """

    callers: set[str]
    need_strides: bool = False


@contextmanager
def calls(model: nn.Module) -> Iterator[Calls]:
    """Collect what the model's own code calls."""
    found = Calls(set())
    with running(model) as stack, _Seen(stack, found) as seen:
        yield found
    if any(version_of(x) != version for x, version in seen.viewed):
        found.need_strides = True
    # What is viewed is laid out anew, and dropout in a checkpoint that runs again would go by the new order.
    if seen.depth > 1 and any(_has_layouts((x,)) for x, _ in seen.viewed):
        found.need_strides = True
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            found.callers.discard(name)


class Watcher(TorchFunctionMode):
    """Base of the modes that see functions as a model calls them: those that save less go beneath."""


class _Entered(NamedTuple):
    """A module that runs, the mode that it has put in force, and the hooks on saved tensors it runs under."""

    module: nn.Module
    mode: _Calls | None
    hooks: tuple[Any, ...]


_active = threading.local()


@contextmanager
def settled() -> Iterator[None]:
    """Leave, at the end, the modes of modules that an exception has ended without running their hooks."""
    stack = vars(_active).setdefault("stack", [])
    depth = len(stack)
    try:
        yield
    finally:
        while len(stack) > depth:
            _pop(stack)


@contextmanager
def _beneath_watchers() -> Iterator[None]:
    watchers = []
    while isinstance(_get_current_function_mode(), Watcher):
        watchers.append(_pop_mode())
    try:
        yield
    finally:
        while watchers:
            _push_mode(watchers.pop())


def _enter(module: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        return
    stack = vars(_active).setdefault("stack", [])
    # an interrupt, which runs no hooks, may have left this very call behind
    while any(entered.module is module for entered in stack):
        _pop(stack)
    mode = None if stack else _Calls()
    if mode is not None:
        with _beneath_watchers():
            mode.__enter__()
    stack.append(_Entered(module, mode, hooks_in_force()))


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    stack = vars(_active).get("stack", [])
    # also called where a hook before _enter has failed
    if torch.compiler.is_compiling() or not stack or stack[-1].module is not module:
        return
    _pop(stack)


def _pop(stack: list[_Entered]) -> None:
    mode = stack.pop().mode
    if mode is not None:
        with _beneath_watchers():
            mode.__exit__(None, None, None)


def watch(module: nn.Module) -> None:
    """Let the functions that ``module`` calls save less from now on; a rewritten module does so already."""
    if isinstance(module, Rewritten):
        return
    module.register_forward_pre_hook(_enter)
    module.register_forward_hook(_leave, always_call=True)


def release(module: nn.Module) -> None:
    """Undo :func:`watch`."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
