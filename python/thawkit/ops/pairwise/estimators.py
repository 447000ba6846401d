"""Estimators of the squared MMD that need no pairwise engine: checks, precision, random frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.mmd import uniform
from thawkit.ops.pairwise.reference import estimators
from thawkit.ops.pairwise.reference.mmd import Sample, Weights, absolute, in_units


def mmd_of_means(layer: Sample, weights: Weights | None, unbiased: bool) -> Tensor:
    """The kernel ``<u, v>`` of all pairs, without labels."""
    _at_least(layer, 2 if unbiased else 1)
    with full_precision(layer.x):
        x, y, _, divisor = _lifted(layer)
        pairs = uniform(x, y, unbiased) if weights is None else weights
        return estimators.of_means(x, y, pairs, equal=weights is None) / divisor


def mmd_of_pairs(layer: Sample) -> Tensor:
    """Linear-time estimate, over disjoint pairs of rows."""
    _at_least(layer, 2)
    with full_precision(layer.x):
        x, y, rates, divisor = _lifted(layer)
        return estimators.linear_time(x, y, layer.kernel, rates) / divisor


def mmd_of_blocks(layer: Sample, size: int | None) -> Tensor:
    """Mean of the U-statistics of disjoint blocks of rows."""
    smaller = min(layer.x.shape[0], layer.y.shape[0])
    if size is None:
        size = max(2, int(math.sqrt(smaller)))  # isqrt has no symbol in a graph
    checks.integer("block_size", size, 2)
    _at_least(layer, size)
    with full_precision(layer.x):
        x, y, rates, divisor = _lifted(layer)
        return estimators.of_blocks(x, y, layer.kernel, rates, int(size)) / divisor


def mmd_of_features(
    layer: Sample, weights: Weights | None, features: int, generator: torch.Generator | None
) -> Tensor:
    """Estimate from random Fourier features."""
    kernel = layer.kernel
    if kernel.name not in ("rbf", "laplace"):
        raise ThawkitError(f"estimator='rff' takes the kernels rbf and laplace, not {kernel.name!r}")
    checks.integer("features", features, 1)
    _at_least(layer, 1)
    with full_precision(layer.x):
        x, y, rates, _ = _lifted(layer)
        assert rates is not None
        frequencies = _frequencies(x, int(features), kernel.name, generator)
        if weights is None:
            weights = uniform(x, y, False)
        return estimators.of_features(x, y, (weights.x, weights.y), rates, frequencies)


def _frequencies(like: Tensor, count: int, kernel: str, generator: torch.Generator | None) -> Tensor:
    """(D, count) draws of the spectral density at rate 1: normal, for laplace the multivariate Cauchy."""
    device = like.device if generator is None else generator.device
    rows = like.shape[1] + (kernel == "laplace")
    draws = torch.randn(rows, count, generator=generator, dtype=like.dtype, device=device).to(like.device)
    return draws if kernel == "rbf" else draws[1:] / draws[:1]


def _lifted(layer: Sample) -> tuple[Tensor, Tensor, Tensor | None, Tensor | float]:
    x, y = lifted(layer.x), lifted(layer.y)
    rates, x, y, divisor = in_units(layer.kernel, absolute(layer.kernel, layer.rates, x, y), x, y)
    return x, y, rates, divisor


def _at_least(layer: Sample, rows: int) -> None:
    for name, sample in (("x", layer.x), ("y", layer.y)):
        if sample.shape[0] < rows:
            raise ThawkitError(f"{name} must have at least {rows} rows, got {sample.shape[0]}")
