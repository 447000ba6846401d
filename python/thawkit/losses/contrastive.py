"""Contrastive losses as modules."""

from __future__ import annotations

import math

from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F


class InfoNCELoss(nn.Module):
    """InfoNCE of queries against keys; see :func:`thawkit.losses.functional.info_nce`.

    Args:
        temperature: divides the similarities. For a learned scale call the function with a tensor.
        normalize: use cosine similarities.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    def __init__(self, temperature: float = 0.07, normalize: bool = True, reduction: str = "mean"):
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ThawkitError(f"temperature must be positive and finite, got {temperature}")
        self.temperature = temperature
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the loss of ``q`` (N, D) against ``k`` (M, D), ``k[i]`` being the positive of ``q[i]``."""
        return F.info_nce(
            q, k, logit_scale=1 / self.temperature, normalize=self.normalize, reduction=self.reduction
        )
