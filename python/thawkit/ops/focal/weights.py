"""What weighs the elements of a sigmoid focal loss, and how the kernel reads it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks

ALPHA_MODES = ("balanced", "positive", "per_class")

BLOCK = 512  # the compiled kernels' kFocalBlock


class Weights(NamedTuple):
    """Factors of positive and negative targets and of the cross-entropy's positive part; the last of all."""

    positive: Tensor | float
    negative: Tensor | float
    pos_weight: Tensor | float
    weight: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether two numbers say it all."""
        if isinstance(self.pos_weight, Tensor) or self.pos_weight != 1.0 or self.weight is not None:
            return False
        return not isinstance(self.positive, Tensor) and not isinstance(self.negative, Tensor)

    @property
    def requires_grad(self) -> bool:
        """Whether one of them needs a gradient, which the kernels have not."""
        return any(isinstance(x, Tensor) and x.requires_grad for x in self)


class Packed(NamedTuple):
    """The same for the kernel: vectors of one period, and one factor for each run of ``row`` elements."""

    positive: float = 1.0
    negative: float = 1.0
    classes: Tensor | None = None
    period: int = 1
    row_weight: Tensor | None = None
    row: int = 1


def weights(
    inputs: Tensor,
    alpha: Tensor | float | None,
    alpha_mode: str,
    pos_weight: Tensor | float | None,
    weight: Tensor | None,
) -> Weights:
    """Check the arguments and return what they weigh with, tensors in a shape that broadcasts to ``inputs``.

    Raises:
        ThawkitError: a number is not finite or out of range, a shape does not broadcast.
    """
    check(alpha, alpha_mode, pos_weight)
    positive, negative = _alpha(inputs, alpha, alpha_mode)
    if isinstance(pos_weight, Tensor):
        _broadcasts("pos_weight", pos_weight, inputs)
    else:
        pos_weight = 1.0 if pos_weight is None else float(pos_weight)
    if weight is not None:
        _broadcasts("weight", weight, inputs)
    return Weights(positive, negative, pos_weight, weight)


def check(alpha: Tensor | float | None, mode: str, pos_weight: Tensor | float | None) -> None:
    """Check what needs no logits.

    Raises:
        ThawkitError: an unknown mode, a number is not finite or out of range.
    """
    checks.one_of("alpha_mode", mode, ALPHA_MODES)
    if isinstance(alpha, Tensor):
        checks.floating("alpha", alpha)
        _in_range(alpha, mode)
    elif alpha is not None:
        checks.finite("alpha", alpha)
        if mode == "per_class":
            raise ThawkitError(
                f"alpha must be a tensor of class weights where alpha_mode='per_class', got {alpha}"
            )
        if mode == "balanced" and alpha > 1:
            raise ThawkitError(f"alpha must be in [0, 1], or negative for no class weights, got {alpha}")
    if isinstance(pos_weight, Tensor):
        checks.floating("pos_weight", pos_weight)
    elif pos_weight is not None:
        checks.finite("pos_weight", pos_weight)


def _alpha(inputs: Tensor, alpha: Tensor | float | None, mode: str) -> tuple[Tensor | float, Tensor | float]:
    if isinstance(alpha, Tensor):
        _broadcasts("alpha", alpha, inputs)
        if mode == "per_class":
            return alpha, alpha
        alpha = alpha.double()  # 1 - alpha of a half-precision alpha, or for float64 logits, keeps its digits
        unweighted = alpha < 0
        positive = alpha.masked_fill(unweighted, 1.0)
        return positive, (1 - alpha).masked_fill(unweighted, 1.0) if mode == "balanced" else 1.0
    if alpha is None or alpha < 0:
        return 1.0, 1.0
    alpha = float(alpha)
    return alpha, 1.0 - alpha if mode == "balanced" else 1.0


def _in_range(alpha: Tensor, mode: str) -> None:
    """Require of a tensor what a number has to be, where looking takes no waiting."""
    if not checks.readable(alpha) or alpha.numel() == 0:
        return
    least, largest = (x.item() for x in alpha.detach().aminmax())
    if not math.isfinite(least) or not math.isfinite(largest):
        raise ThawkitError(f"alpha must be finite, got {largest if math.isfinite(least) else least}")
    if mode == "per_class" and least < 0:
        raise ThawkitError(f"alpha must be at least 0 where alpha_mode='per_class', got {least}")
    if mode == "balanced" and largest > 1:
        raise ThawkitError(f"alpha must be in [0, 1], or negative for no class weights, got {largest}")


def _broadcasts(name: str, x: Tensor, inputs: Tensor) -> None:
    checks.floating(name, x)
    checks.same_device(name, x, "inputs", inputs)
    fits = x.dim() <= inputs.dim() and all(
        a in (1, b) for a, b in zip(reversed(x.shape), reversed(inputs.shape), strict=False)
    )
    if not fits and x.numel() != 1:
        raise ThawkitError(
            f"{name} must broadcast to the shape of inputs, {tuple(inputs.shape)}, got {tuple(x.shape)}"
        )


def on(x: Tensor | float, inputs: Tensor) -> Tensor | float:
    """Return a factor as the definition takes it, in the dtype of its inputs."""
    if not isinstance(x, Tensor):
        return x
    return (x.reshape(()) if x.numel() == 1 else x).to(inputs.dtype)


def pack(inputs: Tensor, given: Weights) -> Packed:
    """Return the weights for the kernel; they get no gradient."""
    positive, negative, pos_weight, weight = given
    row_weight, row = None, 1
    if weight is not None and _constant_dims(weight, inputs) > 0:
        positive, negative = positive * weight.double(), negative * weight.double()
    elif weight is not None:
        shape = _padded(weight, inputs)
        varying = max((i + 1 for i, size in enumerate(shape) if size != 1), default=0)
        expanded = weight.detach().reshape(shape).expand(*inputs.shape[:varying], *shape[varying:])
        row_weight = expanded.reshape(-1).to(torch.float32)
        row = inputs.shape[varying:].numel()
    if Weights(positive, negative, pos_weight, None).plain:
        return Packed(float(positive), float(negative), row_weight=row_weight, row=row)
    tensors = [x for x in (positive, negative, pos_weight) if isinstance(x, Tensor)]
    first = min((_constant_dims(x, inputs) for x in tensors), default=inputs.dim())
    rows = [_vector(x, inputs, first) for x in (positive, negative, pos_weight)]
    vectors = torch.stack(rows).to(torch.float32)
    period = max(vectors.shape[1], 1)
    length = period + BLOCK
    repeated = vectors.repeat(1, -(-length // period))[:, :length].contiguous()
    return Packed(1.0, 1.0, repeated, period, row_weight, row)


def _vector(x: Tensor | float, inputs: Tensor, first: int) -> Tensor:
    """Return what an element has as factor, by its place in the dimensions from ``first`` on."""
    trailing = inputs.shape[first:]
    if not isinstance(x, Tensor):
        return torch.full((trailing.numel(),), x, dtype=torch.float64, device=inputs.device)
    return x.detach().double().reshape(_padded(x, inputs)[first:]).expand(trailing).reshape(-1)


def _padded(x: Tensor, inputs: Tensor) -> tuple[int, ...]:
    shape = () if x.numel() == 1 else tuple(x.shape)
    return (1,) * (inputs.dim() - len(shape)) + shape


def _constant_dims(x: Tensor, inputs: Tensor) -> int:
    """Return how many leading dimensions of ``inputs`` the tensor does not vary along."""
    shape = _padded(x, inputs)
    return next((i for i, size in enumerate(shape) if size != 1), len(shape))


def unpacked(packed: Packed, like: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """Return positive, negative and pos_weight of each element of a flattened tensor."""
    positive: Tensor | float = packed.positive
    negative: Tensor | float = packed.negative
    pos_weight: Tensor | float = 1.0
    if packed.classes is not None:
        periods = -(-like.numel() // packed.period)
        each = packed.classes[:, : packed.period].to(like.dtype).repeat(1, periods)
        positive, negative, pos_weight = each[:, : like.numel()].unbind(0)
    if packed.row_weight is not None:
        factor = packed.row_weight.to(like.dtype).repeat_interleave(packed.row)
        positive, negative = positive * factor, negative * factor
    return positive, negative, pos_weight
