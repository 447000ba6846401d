"""Squared MMD of two samples, without the matrix of pairs: schema, checks, gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, reference
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference.mmd import Sample, Weights

OBJECTIONS = {"cpu": cpu.objection}


def mmd(layers: Sequence[Sample], weights: Weights | None = None, *, unbiased: bool = False) -> Tensor:
    """Squared MMD of samples that one or several layers see, whose kernels multiply.

    Args:
        layers: what each sees of both samples, with its kernel.
        weights: what pairs count; None is the mean over each block of pairs.
        unbiased: without weights, the U-statistic (Gretton et al. 2012, eq. 3) instead of the V-statistic
            (eq. 5). With weights, ``weights.same`` says so.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a sample is too small.
    """
    _check(layers, unbiased or (weights is not None and weights.same is not None))
    choose("mmd", {}, layers[0].x)
    return definition(layers, weights, unbiased)


def _check(layers: Sequence[Sample], unbiased: bool) -> None:
    least = 2 if unbiased else 1
    for i, layer in enumerate(layers):
        x, y = ("x", "y") if len(layers) == 1 else (f"x[{i}]", f"y[{i}]")
        checks.row_pair(x, layer.x, y, layer.y)
        for name, sample, first in ((x, layer.x, layers[0].x), (y, layer.y, layers[0].y)):
            if sample.shape[0] < least:
                raise ThawkitError(f"{name} must have at least {least} rows, got {sample.shape[0]}")
            if sample.shape[0] != first.shape[0] or sample.dtype != first.dtype:
                raise ThawkitError(
                    f"{name} must have {first.shape[0]} rows of {first.dtype} as the first layer has, "
                    f"got {sample.shape[0]} of {sample.dtype}"
                )


def definition(layers: Sequence[Sample], weights: Weights | None, unbiased: bool) -> Tensor:
    """The reference, in float32 for half precision."""
    x, y = layers[0].x, layers[0].y
    with full_precision(x):
        layers = [sample._replace(x=lifted(sample.x), y=lifted(sample.y)) for sample in layers]
        return reference.mmd(layers, uniform(x, y, unbiased) if weights is None else weights)


def uniform(x: Tensor, y: Tensor, unbiased: bool) -> Weights:
    """Return the weights of the mean over each block of pairs."""
    n, m = x.shape[0], y.shape[0]
    of_x, of_y = (
        torch.full((count,), value, dtype=lifted(x).dtype, device=x.device)
        for count, value in ((n, 1 / n), (m, -1 / m))
    )
    if not unbiased:
        return Weights(of_x, of_y)
    return Weights(of_x, of_y, (torch.full_like(of_x, n / (n - 1)), torch.full_like(of_y, m / (m - 1))))
