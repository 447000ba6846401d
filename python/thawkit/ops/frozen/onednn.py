"""oneDNN's convolutions and products on weights that it has laid out for itself once.

torch lays a weight out anew at every call; one that is frozen can be laid out once, for the forward product
and for the gradient in the input. These are operators of torch, which its compiler uses for inference; they
are private, so each is looked for, and where one is missing or refuses, nothing here is used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.ops.frozen.geometry import Geometry
from thawkit.ops.frozen.packed import Packed

_DTYPES = (torch.float32,)
_TYPES = (Tensor, nn.Parameter)
_CLAMPS = {(-math.inf, math.inf): "none", (0.0, math.inf): "relu"}


@functools.cache
def available() -> bool:
    """Whether torch has the operators, and they run here."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    x, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    try:
        y = convolution(x, weight, None, torch.ones(1), geometry, x, Packed())
        y += convolution(x, weight, None, -y.view(1), geometry, x, Packed(), 0.0)  # 0
        y += convolution(x, weight, None, -y.view(1), geometry, None, Packed(), 0.0, 0.0)  # 0
        g = input_gradient(y, weight, None, x.shape, geometry, Packed())
        z = linear(x.view(1, 1), weight.view(1, 1), None, Packed())
        z *= linear(x.view(1, 1), weight.view(1, 1), None, Packed(given_up=True), transposed=True)
    except (AttributeError, RuntimeError):
        return False
    return bool(y.item() == 3 and g.item() == 3 and z.item() == 1)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the packed operators take a tensor and a weight."""
    if type(x) not in _TYPES or type(weight) not in _TYPES:  # FakeTensor has no values to be laid out
        return False
    fits = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in _DTYPES
    return fits and x.dim() > 0 and x.numel() > 0 and weight.numel() > 0 and available()


@functools.cache
def products_gain() -> bool:
    """Whether oneDNN multiplies matrices faster than torch's own product does.

    That is MKL, whose code for Intel's CPUs is as fast there; on others it takes the way of older ones.
    """
    from thawkit import _C

    return not (torch.backends.mkl.is_available() and _C.cpu_is_intel())


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, transposed: bool = False
) -> Tensor:
    """``x @ weight.T + bias`` for ``x``, ``(*, I)``; with a ``transposed`` weight ``x @ weight + bias``."""
    layout = _laid_out("linear", weight, x.numel() // x.shape[-1], transposed, packed)
    return _op("_linear_pointwise")(x, layout, bias, "none", [], "")


def linear_input_gradient(grad: Tensor, weight: Tensor, packed: Packed, transposed: bool = False) -> Tensor:
    """``grad @ weight`` for ``grad``, ``(*, O)``; with a ``transposed`` weight ``grad @ weight.T``."""
    rows = grad.numel() // grad.shape[-1]
    layout = _laid_out("linear input", weight, rows, not transposed, packed)
    return _op("_linear_pointwise")(grad, layout, None, "none", [], "")


def _laid_out(use: str, weight: Tensor, rows: int, transpose: bool, packed: Packed) -> Tensor:
    matrix = weight.detach().t() if transpose else weight.detach()
    if packed.given_up:  # the product lays it out for itself
        return matrix
    make = lambda: _op("_reorder_linear_weight")(matrix.contiguous(), rows)
    return packed.get(weight, (use, rows), make)


def scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """``weight``, ``(O, ...)``, times ``scale``, ``(O,)``, for a convolution that is frozen."""
    weight = weight.detach()
    return weight if scale is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))


def convolution(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    geometry: Geometry,
    other: Tensor | None,
    packed: Packed,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> Tensor:
    """``clamp(scale * conv2d(x, weight) + bias + other, lower, upper)``, the result in channels-last order.

    The layouts in ``packed`` are of the weight times its ``scale``, ``(O,)``, which must always be the same.
    The clamp turns NaN into a bound.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation, groups = geometry
    layout = packed.get(
        weight,
        ("convolution", x.shape),
        lambda: _op("_reorder_convolution_weight")(
            scaled(weight, scale), padding, stride, dilation, groups, x.shape
        ),
    )
    options = padding, stride, dilation, groups
    clamp = _CLAMPS.get((lower, upper), "hardtanh")
    if other is None:
        bounds = [lower, upper] if clamp == "hardtanh" else []
        return _op("_convolution_pointwise")(x, layout, bias, *options, clamp, bounds, "")
    other = other.contiguous(memory_format=torch.channels_last)
    after = "relu" if clamp == "relu" else None  # the only one that may follow a sum
    y = _op("_convolution_pointwise").binary(x, other, layout, bias, *options, "add", 1.0, after, [], "")
    return y.clamp_(lower, upper) if clamp == "hardtanh" else y


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shape: torch.Size,
    geometry: Geometry,
    packed: Packed,
) -> Tensor:
    """Gradient of :func:`convolution` in its input of the given shape."""
    stride, padding, dilation, groups = geometry
    extra = [
        size - ((out - 1) * s - 2 * p + d * (kernel - 1) + 1)
        for size, out, s, p, d, kernel in zip(
            shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    grad = grad.contiguous(memory_format=torch.channels_last)
    layout = packed.get(
        weight,
        ("convolution input", grad.shape),
        lambda: _op("_reorder_convolution_transpose_weight")(
            scaled(weight, scale), padding, extra, stride, dilation, groups, grad.shape
        ),
    )
    options = padding, extra, stride, dilation, groups
    return _op("_convolution_transpose_pointwise")(grad, layout, None, *options, "none", [], "")


def _op(name: str) -> Any:
    return getattr(torch.ops.mkldnn, name)
