"""Distances between the moments of two samples, as modules."""

from __future__ import annotations

from torch import Tensor

from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.losses.functional.moments import CORAL_SCALES
from thawkit.ops import checks


class CORALLoss(Loss):
    """Distance of the covariances of two samples; see :func:`thawkit.losses.functional.coral`.

    Args:
        scale: ``deep_coral``, ``tllib`` or ``frobenius``.
    """

    def __init__(self, scale: str = "deep_coral"):
        super().__init__()
        checks.one_of("scale", scale, CORAL_SCALES)
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of samples (N, D) and (M, D)."""
        return F.coral(x, y, scale=self.scale)


class CMDLoss(Loss):
    """Central moment discrepancy of two samples; see :func:`thawkit.losses.functional.cmd`.

    Args:
        orders: the highest moment.
        interval: (a, b) that the features lie in.
    """

    def __init__(self, orders: int = 5, interval: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        checks.integer("orders", orders, 1)
        self.orders = orders
        self.interval = interval

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of samples (N, D) and (M, D)."""
        return F.cmd(x, y, orders=self.orders, interval=self.interval)
