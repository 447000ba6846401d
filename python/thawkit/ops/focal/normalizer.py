"""What a sum of losses is divided by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import lifted

NORMALIZERS = ("none", "numel", "valid", "positives")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Exactly(NamedTuple):
    """A divisor that other losses bring with them, 0 included."""

    by: Tensor


Normalizer = str | Tensor | float | Exactly | None


def check(normalizer: Normalizer, reduction: str, name: str, count: int) -> None:
    """Require a normalizer that goes with the reduction; ``count`` is the number of losses of ``name``.

    Raises:
        ThawkitError: an unknown name, a number that is not positive, a mean of nothing or without a divisor.
    """
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    if normalizer is None or isinstance(normalizer, str):
        if normalizer is not None:
            checks.one_of("normalizer", normalizer, NORMALIZERS)
        if reduction == "mean" and normalizer == "none":
            raise ThawkitError(
                "normalizer must say what reduction='mean' divides by, got 'none' (that is reduction='sum')"
            )
        if normalizer in (None, "numel", "valid"):
            checks.reduced(name, count, reduction)
        return
    if isinstance(normalizer, Exactly):
        checks.reduced(name, count, reduction)
        return
    if isinstance(normalizer, Tensor) and normalizer.dtype in _INTEGERS:  # a count is one
        normalizer = normalizer.double()
    checks.positive_scalar("normalizer", normalizer)


def divisor(
    normalizer: Normalizer,
    reduction: str,
    count: int,
    valid: Callable[[], Tensor] | None,
    positives: Callable[[], Tensor],
) -> Tensor | float | None:
    """Return what the losses are divided by, at least 1 where it is counted; None: nothing.

    Args:
        normalizer: as the user gave it; None is ``valid`` for a mean and ``none`` otherwise.
        reduction: of the losses.
        count: how many losses there are.
        valid: counts those that are not left out, None where none are.
        positives: counts or adds up the positive ones of them.
    """
    if normalizer is None:
        normalizer = "valid" if reduction == "mean" else "none"
    if isinstance(normalizer, Tensor | Exactly):
        return (normalizer if isinstance(normalizer, Tensor) else normalizer.by).reshape(())
    if not isinstance(normalizer, str):
        return float(normalizer)
    if normalizer == "none":
        return None
    if normalizer == "positives":
        return positives().clamp_min(1)
    if normalizer == "numel" or valid is None:
        return float(max(count, 1))
    return valid().clamp_min(1)


def divided(loss: Tensor, by: Tensor | float | None) -> Tensor:
    """Return the losses over their divisor, in their own dtype."""
    if by is None:
        return loss
    if not isinstance(by, Tensor):
        return loss / by
    wide = lifted(loss)  # a count above 65504 is no float16
    return (wide / by.to(loss.device, wide.dtype)).to(loss.dtype)


def split(by: Tensor | float | None, device: torch.device) -> tuple[float, Tensor | None, Tensor | None]:
    """Return a factor and a divisor for the kernel, and a divisor that needs a gradient and is left over."""
    if by is None:
        return 1.0, None, None
    if not isinstance(by, Tensor):
        return 1.0 / by, None, None
    if by.requires_grad:
        return 1.0, None, by
    return 1.0, by.to(device, torch.float32), None
