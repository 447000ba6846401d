"""Bandwidths of RBF kernels in numbers, from how they may be asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses.functional.mmd import _multiplier_and_count
from thawkit.ops.pairwise.reference import mean_squared_distance, squared_distances
from thawkit.ops.pairwise.reference.distances import centre

_MEDIAN_ROWS = 2000


def absolute_bandwidths(bandwidths: Tensor | tuple[float, int] | str, z: Tensor) -> tuple[Tensor, bool]:
    """Return (B,) bandwidths for the rows of both samples, and whether 1 / s_b^2 doubles at each."""
    if isinstance(bandwidths, Tensor):
        if not bool((bandwidths.isfinite() & (bandwidths > 0)).all()) or bandwidths.numel() == 0:
            raise ThawkitError(f"bandwidths must be positive and finite, got {bandwidths.tolist()}")
        return bandwidths.reshape(-1).to(z), False
    if bandwidths == "median":
        return median_distance(z.detach())[None], False
    multiplier, count = _multiplier_and_count(bandwidths)
    mean = mean_squared_distance(z, z[:0]).clamp_min(2.6e-29)
    exponents = torch.arange(count - 1 - count // 2, -1 - count // 2, -1, device=z.device)
    return (mean * multiplier ** exponents.to(z.dtype)).sqrt(), multiplier == 2.0 and count <= 8


def median_distance(z: Tensor) -> Tensor:
    """Return the median distance of pairs of rows, at most 2000 of them; 1 where it is 0.

    Of more rows those at evenly spaced ranks along one fixed line are taken: a choice that does not see the
    rows' order, and so not which sample they belong to.
    """
    if z.shape[0] > _MEDIAN_ROWS:
        generator = torch.Generator().manual_seed(0)
        line = torch.randn(z.shape[1], generator=generator, device="cpu", dtype=torch.float32).to(z)
        ranks = torch.arange(_MEDIAN_ROWS, device=z.device) * z.shape[0] // _MEDIAN_ROWS
        z = z[(z * line).sum(1).argsort()[ranks]]
    rows = z - centre(z)  # distances do not see it, rounding does
    d2 = squared_distances(rows, rows)
    if rows.shape[0] < 2:
        return d2.new_ones(())
    median = d2[torch.ones_like(d2, dtype=torch.bool).triu(1)].median()
    return median.sqrt() if median > 0 else torch.ones_like(median)
