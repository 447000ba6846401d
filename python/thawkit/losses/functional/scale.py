"""The bound of a learned inverse temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks

__all__ = ["clamp_logit_scale"]


def clamp_logit_scale(logit_scale: Tensor, maximum: float) -> Tensor:
    """Bound a learned inverse temperature from above, as CLIP does at 100 (Radford et al. 2021, section 2.5).

    Beyond the bound ``torch.clamp`` has no gradient, so that a parameter that got there stays for ever. Here
    a gradient that leads back, one whose descent lowers the scale, passes; one that leads further away does
    not.

    Args:
        logit_scale: tensor of one element.
        maximum: positive and finite.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ThawkitError: ``logit_scale`` is no tensor of one element, or ``maximum`` is not positive and finite.

    Example:
        scale = F.clamp_logit_scale(model.log_scale.exp(), 100.0)
        loss = F.clip(image, text, logit_scale=scale)
    """
    check_maximum("maximum", maximum)
    if not isinstance(logit_scale, Tensor):
        raise ThawkitError(f"logit_scale must be a tensor to be clamped, got {type(logit_scale).__name__}")
    checks.scalar("logit_scale", logit_scale)
    return _Clamp.apply(logit_scale, maximum)


def check_maximum(name: str, maximum: float) -> None:
    """Refuse a bound that is not a positive finite number."""
    if isinstance(maximum, bool | Tensor):
        raise ThawkitError(f"{name} must be a number, got {type(maximum).__name__}")
    checks.positive_scalar(name, maximum)


class _Clamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logit_scale: Tensor, maximum: float) -> Tensor:
        return logit_scale.clamp(max=maximum)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        logit_scale, ctx.maximum = inputs
        ctx.save_for_backward(logit_scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (logit_scale,) = ctx.saved_tensors
        return torch.where((logit_scale <= ctx.maximum) | (g > 0), g, 0.0), None
