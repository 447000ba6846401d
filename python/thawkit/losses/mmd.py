"""Distances between distributions as modules."""

from __future__ import annotations

from torch import Tensor, nn

from thawkit.losses import functional as F


class MMDLoss(nn.Module):
    """Squared maximum mean discrepancy; see :func:`thawkit.losses.functional.mmd`."""

    def __init__(
        self,
        kernel: str = "rbf",
        bandwidths: Tensor | tuple[float, int] | str = "mean",
        estimator: str = "biased",
    ):
        super().__init__()
        self.kernel = kernel
        self.bandwidths = bandwidths
        self.estimator = estimator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared MMD of samples (N, D) and (M, D)."""
        return F.mmd(x, y, kernel=self.kernel, bandwidths=self.bandwidths, estimator=self.estimator)
