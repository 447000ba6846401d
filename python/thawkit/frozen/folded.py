"""A frozen convolution and the normalization after it as one convolution, with a sum and a clamp on top; and
a normalization whose scale trains with these.

With fixed statistics and a frozen scale ``s = gamma / sqrt(var + eps)``, ``BN(conv(x))`` is a convolution
with the weight ``s W`` and the bias ``beta - s mean``. Folded once, the pair costs one convolution and no
pass over its output, ``beta`` may still train, and a residual sum joins the same kernel.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thawkit.frozen.deferred import Input, Parts
from thawkit.ops.frozen import onednn
from thawkit.ops.frozen.convolution import folded_convolution, output_shape
from thawkit.ops.frozen.geometry import Geometry
from thawkit.ops.frozen.normalization import fixed_batch_norm
from thawkit.ops.frozen.packed import Fingerprint, Packed, keeps_none, packed_of


class Fold:
    """What a convolution and its normalization fold to.

    Attributes:
        scale: ``(O,)``, of the normalization.
        offset: ``(O,)``, what the frozen parts of the biases add up to.
        packed: the scaled weight as the kernels want it; empty until used.
    """

    def __init__(
        self, weight: Tensor, gamma: Tensor | None, mean: Tensor, variance: Tensor, eps: float, lean: bool
    ) -> None:
        with torch.inference_mode(False), torch.no_grad():  # what is made here may be saved in training
            self.scale = torch.rsqrt(variance + eps)
            if gamma is not None:
                self.scale = self.scale * gamma
            self.offset = -mean * self.scale
        self.packed = Packed(given_up=lean)
        self._made_of = Fingerprint(*_present(weight, gamma, mean, variance))
        self._eps = eps

    def current(self, eps: float, *parts: Tensor | None) -> bool:
        """Whether it still is what it was made of: weight, gamma, mean and variance."""
        return self._eps == eps and self._made_of.matches(*_present(*parts))


def _present(*parts: Tensor | None) -> list[Tensor]:
    return [part for part in parts if part is not None]


_FOLDS: WeakKeyDictionary[nn.Module, Fold] = WeakKeyDictionary()


def fold_of(
    conv: nn.Conv2d, eps: float, weight: Tensor, gamma: Tensor | None, mean: Tensor, variance: Tensor
) -> Fold:
    """The fold of a convolution, made anew where one of the parts has changed."""
    fold = _FOLDS.get(conv)
    if fold is None or not fold.current(eps, weight, gamma, mean, variance):
        fold = _FOLDS[conv] = Fold(weight, gamma, mean, variance, eps, keeps_none(conv))
    return fold


def forget(module: nn.Module) -> None:
    """Drop what a module folds to."""
    _FOLDS.pop(module, None)


def folded_bytes(module: nn.Module) -> int:
    """Bytes that the folded weight of a module takes, in all its layouts, with what belongs to it."""
    fold = _FOLDS.get(module)
    if fold is None:
        return 0
    return fold.packed.nbytes() + fold.scale.nbytes + fold.offset.nbytes


_LIES_OTHERWISE = "_thawkit_lies_otherwise"  # set on results that the stock layer would not give so


def _noted(y: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return ``y``, which stock lays out as ``x`` or ``weight`` lies; note on it where it lies otherwise."""
    if _channels_last(y) and not _lies_by_itself(x) and (weight is None or not _channels_last(weight)):
        setattr(y, _LIES_OTHERWISE, True)
    return y


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _lies_by_itself(x: Tensor) -> bool:
    return _channels_last(x) and not hasattr(x, _LIES_OTHERWISE)


def in_stock_order(x: Tensor) -> Tensor:
    """``x``, laid out as the stock layer lays its result out where a fused convolution made it.

    In place, so that who views it writes to it as in the stock model.
    """
    if hasattr(x, _LIES_OTHERWISE) and _channels_last(x):
        x.data = x.contiguous()
    return x


def put_off(conv: Any, x: Tensor) -> PendingConvolution | None:
    """What stands for ``conv(x)``; None where that will fail, which it should do where it is called."""
    if x.dim() != 4 or x.shape[1] != conv.in_channels:
        return None
    geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)
    shape = output_shape(x, conv.weight, geometry)
    if min(shape[2:]) <= 0:
        return None
    parts = Parts(conv, conv.weight, conv.bias, None, None, None, None)
    return PendingConvolution(conv, geometry, shape, Input(x, conv), parts)


class PendingConvolution:
    """A convolution, then perhaps its normalization, then perhaps a sum. See :class:`~..deferred.Pending`."""

    def __init__(
        self,
        conv: Any,
        geometry: Geometry,
        shape: tuple[int, ...],
        x: Input,
        parts: Parts,
        norm: Any = None,
        other: Tensor | None = None,
    ) -> None:
        self.conv, self.geometry, self.shape, self.norm = conv, geometry, shape, norm
        self._x, self._other, self._parts = x, None if other is None else Input(other, conv), parts
        self.like = x.get()
        bias, *_, shift = parts.get()[1:]
        self.inputs = tuple(t for t in (self.like, other, bias, shift) if t is not None)

    def normalize(self, norm: Any) -> PendingConvolution | None:
        """What stands for the normalized convolution; None if it cannot join."""
        weight = norm.weight
        if self.norm is not None or (weight is not None and weight.requires_grad):
            return None
        if norm.running_mean.shape[0] != self.shape[1] or norm.running_mean.dtype != self.like.dtype:
            return None
        of_norm = weight, norm.running_mean, norm.running_var, norm.bias
        parts = Parts(norm, *self._parts.get()[:2], *of_norm)
        return PendingConvolution(self.conv, self.geometry, self.shape, self._x, parts, norm)

    def add(self, other: Tensor) -> PendingConvolution | None:
        """See :meth:`~..deferred.Pending.add`."""
        if self.norm is None or self._other is not None:
            return None
        return PendingConvolution(
            self.conv, self.geometry, self.shape, self._x, self._parts, self.norm, other
        )

    def clamp(self, lower: float, upper: float, keep: bool) -> Tensor | None:
        """See :meth:`~..deferred.Pending.clamp`."""
        return None if self.norm is None else self._run(lower, upper, keep)

    def compute(self) -> Tensor:
        """See :meth:`~..deferred.Pending.compute`."""
        return self._run(-math.inf, math.inf) if self.norm is not None else self._bare()

    def _bare(self) -> Tensor:
        conv, x = self.conv, self._x.get()
        weight, bias, *_ = self._parts.get()
        if weight is not conv.weight or bias is not conv.bias:  # torch.func.functional_call lent others
            return F.conv2d(x, weight, bias, *self.geometry)
        if weight.requires_grad or not onednn.takes(x, weight):
            return conv.convolve(x)
        none = weight.new_zeros(self.shape[1])
        y = folded_convolution(x, weight, None, none, None, bias, self.geometry, packed=packed_of(conv))
        return _noted(y, x, weight)

    def _run(self, lower: float, upper: float, keep: bool = False) -> Tensor:
        weight, bias, gamma, mean, variance, shift = self._parts.get()
        fold = fold_of(self.conv, self.norm.eps, weight, gamma, mean, variance)
        x = self._x.get()
        y = folded_convolution(
            x,
            weight,
            fold.scale,
            fold.offset,
            shift,
            bias,
            self.geometry,
            other=None if self._other is None else self._other.get(),
            lower=lower,
            upper=upper,
            keep=keep,
            packed=fold.packed,
            exact=self.conv.exact,
        )
        return _noted(y, x, weight)


class PendingNormalization:
    """A normalization by fixed statistics, then perhaps a sum. See :class:`~..deferred.Pending`."""

    def __init__(self, norm: Any, x: Input, other: Tensor | None = None) -> None:
        self.norm, self.conv = norm, None
        self._x, self._other = x, None if other is None else Input(other, norm)
        self._parts = Parts(norm, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        self.like = x.get()
        self.shape = tuple(self.like.shape)
        self.inputs = tuple(t for t in (self.like, other, norm.weight, norm.bias) if t is not None)

    def add(self, other: Tensor) -> PendingNormalization | None:
        """See :meth:`~..deferred.Pending.add`."""
        return None if self._other is not None else PendingNormalization(self.norm, self._x, other)

    def clamp(self, lower: float, upper: float, keep: bool = False) -> Tensor:
        """See :meth:`~..deferred.Pending.clamp`."""
        other = None if self._other is None else self._other.get()
        x = self._x.get()
        arguments = x, *self._parts.get(), self.norm.eps
        return _noted(fixed_batch_norm(*arguments, other=other, lower=lower, upper=upper, keep=keep), x)

    def compute(self) -> Tensor:
        """See :meth:`~..deferred.Pending.compute`."""
        return self.clamp(-math.inf, math.inf)
