"""Maximum mean discrepancy as a function."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise

__all__ = ["mmd"]


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    bandwidths: Tensor | tuple[float, int] | str = "mean",
    estimator: str = "biased",
) -> Tensor:
    """Squared maximum mean discrepancy between two samples (Gretton et al. 2012), a sum over RBF kernels.

    ``k(u, v) = sum_b exp(-|u - v|^2 / (2 s_b^2))``. No matrix of pairs is stored, only the upper triangle
    of pairs is computed, and the gradient is ready with the value.

    Args:
        x: (N, D) sample, e.g. features of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        kernel: ``rbf``.
        bandwidths: a (B,) tensor of s_b > 0; or ``(multiplier, count)``: s_b^2 is the mean squared distance
            of all pairs times ``multiplier`` to the powers centred on 0, without a gradient, as the
            domain-adaptation literature has it (Long et al. 2015); ``"mean"`` is ``(2.0, 5)``.
        estimator: ``biased`` (V-statistic, negative by rounding at most) or ``unbiased`` (U-statistic, which
            can be negative).

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample is too small, an unknown name.
    """
    checks.one_of("kernel", kernel, ("rbf",))
    checks.one_of("estimator", estimator, ("biased", "unbiased"))
    checks.matrix("x", x)
    if isinstance(bandwidths, Tensor):
        if bandwidths.device.type == "cpu" and not bool((bandwidths.isfinite() & (bandwidths > 0)).all()):
            raise ThawkitError(f"bandwidths must be positive and finite, got {bandwidths.tolist()}")
        gamma, relative, doubling = 0.5 / bandwidths.square(), False, False
    else:
        multiplier, count = _multiplier_and_count(bandwidths)
        exponents = range(count - 1 - count // 2, -1 - count // 2, -1)
        gamma = torch.tensor([0.5 / multiplier**e for e in exponents], dtype=torch.float64, device=x.device)
        relative = True
        # Each squaring doubles the relative rounding error of the one exponential that they start from.
        doubling = multiplier == 2.0 and count <= 8
    unbiased = estimator == "unbiased"
    return _pairwise.mmd(x, y, gamma, relative=relative, doubling=doubling, unbiased=unbiased)


def _multiplier_and_count(bandwidths: object) -> tuple[float, int]:
    if bandwidths == "mean":
        return 2.0, 5
    if isinstance(bandwidths, tuple) and len(bandwidths) == 2:
        multiplier, count = bandwidths
        numbers = isinstance(count, int) and isinstance(multiplier, int | float)
        if numbers and 1 <= count <= 60 and 1 < multiplier <= 2.0 ** (100 / count):
            return float(multiplier), count
    raise ThawkitError(
        "bandwidths must be 'mean', a tensor of positive numbers, or (multiplier, count) "
        "with multiplier > 1, 1 <= count <= 60 and multiplier**count <= 2**100 (float32 ends there), "
        f"got {bandwidths!r}"
    )
