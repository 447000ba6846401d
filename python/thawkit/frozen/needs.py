"""How much of what an operator saves its gradients need, by the operator's name in the graph.

The rules know torch's operators. What they do not know counts as needed, so the sum is never below the truth
for a reason of ignorance. They assume no recomputation and masks of one bit.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

WHOLE = math.inf
"""The tensor itself is needed, and with it the storage it lies in."""

_MASKS = {  # bits an element that the gradient needs of the one tensor that is saved
    "Relu": 1,
    "Threshold": 1,
    "Hardtanh": 1,
    "HardtanhBackward": 1,
    "LeakyRelu": 1,
    "Hardsigmoid": 1,
    "Clamp": 1,
    "ClampMin": 1,
    "ClampMax": 1,
    "Abs": 2,  # the sign, which may be 0
    "Sgn": 2,
}
_SIZES_ONLY = re.compile(
    r"(Mkldnn)?(Adaptive)?AvgPool\dD|(Reflection|Replication)Pad\dD|Upsample\w*|MkldnnAdaptiveAvgPool2D"
)
_MAX_POOL = re.compile(r"(Adaptive)?MaxPool(\d)D(WithIndices)?")
_CONVOLUTION = re.compile(r"(Cudnn|Miopen|Mkldnn|Mps)?Convolution(Transpose|Overrideable)?")
_BATCH_NORM = re.compile(r"(Native|Cudnn|Miopen)BatchNorm")
_NORM = re.compile(r"Native(Layer|Group)Norm|Fused(RmsNorm|LayerNorm)")

_INPUT = {"self": 0, "input": 0, "mat1": 1, "other": 1, "mat2": 1, "weight": 1}  # attribute to argument
_ARGUMENTS = {("Addmm", "mat2"): 2, ("Baddbmm", "batch1"): 1, ("Baddbmm", "batch2"): 2}

SHAPE_ONLY = {
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "T",
    "Transpose",
    "Permute",
    "Unsqueeze",
    "Squeeze",
    "Clone",
    "ViewAs",
    "Alias",
}
"""Operators whose result holds the elements of their first argument and no others."""

CHEAP = re.compile(
    r"Relu|Hardtanh|LeakyRelu|Hardsigmoid|Hardswish|Gelu|Silu|Mish|Elu|Sigmoid|Tanh|Softplus"
    rf"|{_NORM.pattern}|{_BATCH_NORM.pattern}"
)
"""Functions of one tensor, elementwise or with the statistics that are saved anyway."""


def operator_of(node: Any) -> str:
    """``Convolution`` for the graph node ``ConvolutionBackward0``; a Function of one's own by its name."""
    return re.sub(r"Backward\d*$", "", node.name())


def is_mask(operator: str) -> bool:
    """Whether an operator needs bits that its input, or its result, would give as well."""
    return operator in _MASKS or operator == "PreluKernel"


def is_product(operator: str) -> bool:
    """Whether an operator multiplies by a matrix: a convolution or a linear layer."""
    return operator in ("Addmm", "Mm", "Linear") or bool(_CONVOLUTION.fullmatch(operator))


def is_batch_norm(operator: str) -> bool:
    """Whether an operator is a batch normalization."""
    return bool(_BATCH_NORM.fullmatch(operator))


def argument_of(operator: str, attribute: str) -> int | None:
    """Which argument of an operator the graph keeps under ``attribute``; None if it is none, or unknown."""
    return _ARGUMENTS.get((operator, attribute), _INPUT.get(attribute))


def wants(node: Any, argument: int) -> bool:
    """Whether a gradient goes to an argument."""
    following = node.next_functions
    return argument < len(following) and following[argument][0] is not None


def needed(node: Any, attribute: str, tensor: Tensor) -> float:
    """Bytes that the node's gradients need of ``tensor``, which it keeps under ``attribute``, or WHOLE."""
    operator = operator_of(node)
    elements = tensor.numel()
    if tensor.dtype == torch.bool:
        return math.ceil(elements / 8)
    if _CONVOLUTION.fullmatch(operator):
        other = {"input": 1, "self": 1, "weight": 0}.get(attribute)
        return WHOLE if other is None or wants(node, other) else 0
    if _BATCH_NORM.fullmatch(operator):
        by_batch = getattr(node, "_saved_training", True)
        return WHOLE if wants(node, 1) or (by_batch and wants(node, 0)) else 0
    if _NORM.fullmatch(operator):
        return WHOLE if wants(node, 0) or wants(node, 1) else 0
    if operator == "PreluKernel":
        return WHOLE if attribute == "self" and wants(node, 1) else math.ceil(elements / 8)
    if operator in _MASKS:
        return math.ceil(_MASKS[operator] * elements / 8)
    if operator in ("Maximum", "Minimum"):  # which argument it is, or both, which then share the gradient
        return math.ceil(2 * elements / 8) if attribute == "self" else 0
    if operator in ("Amax", "Amin", "Max", "Min") and attribute == "self":
        return math.ceil(elements / 8)  # which elements share the maximum
    if _SIZES_ONLY.fullmatch(operator):
        return 0
    if pool := _MAX_POOL.fullmatch(operator):
        if attribute in ("self", "input"):
            return 0
        return math.ceil(elements * _code_bits(_window(node, int(pool[2]))) / 8)
    return WHOLE


def _window(node: Any, dims: int) -> int:
    """Elements that a max-pooling chooses from, at most."""
    size = getattr(node, "_saved_kernel_size", None)
    if size is not None:
        return math.prod(size if len(size) == dims else list(size) * dims)
    shapes = [
        getattr(node, name).data.tensor.shape[-dims:] for name in ("_raw_saved_self", "_raw_saved_result1")
    ]
    return math.prod(math.ceil(i / o) + 1 for i, o in zip(*shapes, strict=True))


def _code_bits(window: int) -> int:
    return next(bits for bits in (2, 4, 8, 16, 32, 64) if window <= 2**bits)
