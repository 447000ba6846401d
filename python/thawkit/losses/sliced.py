"""Sliced Wasserstein distance of two samples, as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.ops import checks


class SlicedWassersteinLoss(Loss):
    """Sliced Wasserstein distance; see :func:`thawkit.losses.functional.sliced_wasserstein`.

    Args:
        projections: number of random directions, drawn anew for each batch; or (D, L) directions, kept as a
            buffer.
        p: exponent, at least 1.
        root: return the distance; False: its p-th power.
        generator: where random directions come from; None: torch's own.
    """

    directions: Tensor | None

    def __init__(
        self,
        projections: int | Tensor = 64,
        p: float = 2.0,
        root: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        checks.finite("p", p)
        if p < 1:
            raise ThawkitError(f"p must be at least 1, got {p}")
        checks.boolean("root", root)
        if isinstance(projections, Tensor):
            self.register_buffer("directions", projections)
        else:
            checks.integer("projections", projections, 1)
            self.directions = None
        self.projections = projections.shape[1] if isinstance(projections, Tensor) else projections
        self.p = p
        self.root = root
        self._generator = generator

    def forward(
        self, x: Tensor, y: Tensor, x_weight: Tensor | None = None, y_weight: Tensor | None = None
    ) -> Tensor:
        """Return the distance of samples (N, D) and (M, D), whose rows may have weights (N,) and (M,)."""
        return F.sliced_wasserstein(
            x,
            y,
            projections=self.projections if self.directions is None else self.directions,
            p=self.p,
            x_weight=x_weight,
            y_weight=y_weight,
            root=self.root,
            generator=self._generator,
        )
