"""Distances between the moments of two samples, as functions: CORAL, central moment discrepancy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, product

__all__ = ["cmd", "coral"]

CORAL_SCALES = ("deep_coral", "tllib", "frobenius")


def coral(x: Tensor, y: Tensor, *, scale: str = "deep_coral") -> Tensor:
    """Correlation alignment: how far apart the covariances of two samples are (Sun and Saenko 2016).

    ``C = (x - mean x)^T (x - mean x) / (N - 1)``. In O((N + M) D^2) time and O(D^2) memory.

    Args:
        x: (N, D) sample, e.g. features of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        scale: what becomes of the difference of the covariances:

            - ``deep_coral``: ``|C_x - C_y|_F^2 / (4 D^2)`` (Deep CORAL, eq. 1);
            - ``tllib``: the mean of its D^2 squares, plus the mean of the D squared differences of the means:
              what Transfer-Learning-Library computes, four times Deep CORAL and a term for the means;
            - ``frobenius``: ``|C_x - C_y|_F^2`` (CORAL, Sun, Feng and Saenko 2016, eq. 1).

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample has fewer than 2 rows, an unknown name.
    """
    checks.row_pair("x", x, "y", y)
    checks.one_of("scale", scale, CORAL_SCALES)
    _at_least("x", x, 2)
    _at_least("y", y, 2)
    with full_precision(x):
        x_mean, x_covariance = _mean_and_covariance(lifted(x))
        y_mean, y_covariance = _mean_and_covariance(lifted(y))
        squares = (x_covariance - y_covariance).square()
        if scale == "frobenius":
            return squares.sum()
        if scale == "deep_coral":
            return squares.mean() / 4
        return squares.mean() + (x_mean - y_mean).square().mean()


def _mean_and_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, product(centred.t(), centred) / (x.shape[0] - 1)


def cmd(x: Tensor, y: Tensor, *, orders: int = 5, interval: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Central moment discrepancy (Zellinger et al. 2017, definition 2).

    ``|mean x - mean y| / |b - a| + sum_{k = 2..K} |c_k(x) - c_k(y)| / |b - a|^k``, with Euclidean norms of
    the D differences and ``c_k`` the k-th central moment of each feature. In O(K (N + M) D). At norm 0 the
    gradient is 0.

    Args:
        x: (N, D) sample, e.g. activations of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        orders: K, at least 1.
        interval: (a, b) that the features lie in: (0, 1) behind a sigmoid, (-1, 1) behind tanh. It only
            scales the terms, and features that leave it do no harm but that high orders weigh more.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample has no rows, an interval of no length.
    """
    checks.row_pair("x", x, "y", y)
    checks.integer("orders", orders, 1)
    length = _length(interval)
    _at_least("x", x, 1)
    _at_least("y", y, 1)
    with full_precision(x):
        x, y = lifted(x) / length, lifted(y) / length
        x_mean, y_mean = x.mean(0), y.mean(0)
        total = _norm(x_mean - y_mean)
        x, y = x - x_mean, y - y_mean
        x_power, y_power = x, y
        for _ in range(2, orders + 1):
            x_power, y_power = x_power * x, y_power * y
            total = total + _norm(x_power.mean(0) - y_power.mean(0))
        return total


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm; it may be within the dtype where squares are not. At 0 the gradient is 0."""
    unit = x.detach().abs().sum().clamp_min(torch.finfo(x.dtype).tiny)
    return unit * torch.linalg.vector_norm(x / unit)


def _length(interval: tuple[float, float]) -> float:
    if isinstance(interval, tuple | list) and len(interval) == 2:
        for end in interval:
            checks.finite("interval", end)
        length = abs(float(interval[1]) - float(interval[0]))
        if 0 < length < math.inf:
            return length
    raise ThawkitError(f"interval must be two different numbers (a, b), got {interval!r}")


def _at_least(name: str, sample: Tensor, least: int) -> None:
    if sample.shape[0] < least:
        raise ThawkitError(f"{name} must have at least {least} rows, got {sample.shape[0]}")
