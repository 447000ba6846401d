"""Row normalisation around the GPU kernels, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORM = 1e-12  # torch.nn.functional.normalize's eps


def unit_rows(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return the rows over their Euclidean norms, in the dtype of ``x``, and the norms.

    The norms are (N, 1) in float32, at least 1e-12. Where not ``normalize``: ``x`` as it is, and a scalar 1.
    """
    if not normalize:
        return x, torch.ones((), device=x.device)
    norms = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
    return (x.float() / norms).to(x.dtype), norms


def through_norm(gradient: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Return the gradient with respect to ``x`` from the one with respect to ``x / norm``."""
    unit = x.float() / norm
    along = (gradient * unit).sum(1, keepdim=True).where(norm > _SMALLEST_NORM, 0.0)
    return (gradient - along * unit) / norm
