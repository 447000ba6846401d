"""Distances of all pairs of rows."""

from __future__ import annotations

from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared Euclidean distances, in O(N M) memory."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.t()).clamp_min(0)
