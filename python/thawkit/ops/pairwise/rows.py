"""Row normalisation around the GPU kernels, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORM = 1e-12  # torch.nn.functional.normalize's eps


def row_norms(x: Tensor, normalize: bool) -> Tensor:
    """Return the (N, 1) Euclidean norms in float32, at least 1e-12, or a scalar 1 where not wanted."""
    if not normalize:
        return torch.ones((), device=x.device)
    return torch.linalg.vector_norm(x.float(), dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)


def through_norm(gradient: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Return the gradient with respect to ``x`` from the one with respect to ``x / norm``."""
    unit = x.float() / norm
    along = (gradient * unit).sum(1, keepdim=True).where(norm > _SMALLEST_NORM, 0.0)
    return (gradient - along * unit) / norm
