"""Stand-in for the ``FocalLoss`` of ``torch.hub.load("adeelh/pytorch-multi-class-focal-loss", ...)``.

Where every target is ignored, the 0 that comes back belongs to the graph of the logits, so that ``backward``
works.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thawkit.losses import functional as F
from thawkit.ops import checks

__all__ = ["FocalLoss", "focal_loss"]


class FocalLoss(nn.Module):
    """Softmax focal loss ``alpha_y (1 - p_y)^gamma (-log p_y)``, at first cross-entropy: gamma is 0.

    Args:
        alpha: (C,) class weights.
        gamma: focusing exponent.
        reduction: ``mean`` over the targets that are not ignored, ``sum``, or ``none``: their losses in a
            row, class axis left out, all others in order.
        ignore_index: class of targets that are left out.
    """

    def __init__(
        self,
        alpha: Tensor | None = None,
        gamma: float = 0.0,
        reduction: str = "mean",
        ignore_index: int = -100,
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction
        # the weights live here, so that the state has the same name and follows to the same device
        self.nll_loss = nn.NLLLoss(weight=alpha, reduction="none", ignore_index=ignore_index)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) for the classes (N, ...)."""
        counted = y.reshape(-1) != self.ignore_index
        if counted.numel() == 0 or not bool(counted.any()):
            return (x * 0).sum()
        loss = F.focal_loss(
            x,
            y,
            gamma=self.gamma,
            alpha=self.nll_loss.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )
        return loss.reshape(-1)[counted] if self.reduction == "none" else loss

    def __repr__(self) -> str:
        """Return the options as theirs does."""
        names = "alpha", "gamma", "ignore_index", "reduction"
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"


def focal_loss(
    alpha: Sequence[float] | Tensor | None = None,
    gamma: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FocalLoss:
    """Return a :class:`FocalLoss` whose weights may be a sequence.

    Args:
        alpha: class weights.
        gamma: focusing exponent.
        reduction: ``mean``, ``sum`` or ``none``.
        ignore_index: class of targets that are left out.
        device: of the weights.
        dtype: of the weights.
    """
    weights = None if alpha is None else torch.as_tensor(alpha).to(device=device, dtype=dtype)
    return FocalLoss(alpha=weights, gamma=gamma, reduction=reduction, ignore_index=ignore_index)
