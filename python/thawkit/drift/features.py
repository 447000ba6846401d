"""Which features moved: the Kolmogorov-Smirnov test of each, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TERMS = 100  # of the Kolmogorov distribution's series


@dataclass(frozen=True)
class FeatureShift:
    """How one feature moved.

    Attributes:
        name: the feature's.
        ks: Kolmogorov-Smirnov statistic, the largest difference of the two distribution functions, 0 to 1.
        p_value: of that, Holm's correction for the number of features included.
        mean_shift: of the batch's mean from the reference's, in standard deviations of the reference;
            infinite where the reference does not vary.
    """

    name: str
    ks: float
    p_value: float
    mean_shift: float


def feature_shifts(reference: Tensor, batch: Tensor, names: Sequence[str]) -> tuple[FeatureShift, ...]:
    """Return the shift of each column of (N, D) and (M, D) rows, the farthest moved first."""
    ks = ks_statistics(reference, batch)
    p_values = holm(kolmogorov_p_values(ks, reference.shape[0], batch.shape[0]))
    difference = batch.mean(0) - reference.mean(0)
    deviation = reference.std(0, correction=0)
    shift = torch.where(difference == 0, 0.0, difference / deviation)
    columns = zip(names, ks.tolist(), p_values.tolist(), shift.tolist(), strict=True)
    return tuple(sorted((FeatureShift(*column) for column in columns), key=lambda f: -f.ks))


def ks_statistics(x: Tensor, y: Tensor) -> Tensor:
    """(D,) largest differences of the distribution functions of each column of (N, D) and (M, D) rows."""
    n, m = x.shape[0], y.shape[0]
    values, order = torch.cat((x, y)).sort(0)
    steps = torch.where(order < n, 1.0 / n, -1.0 / m).double()
    gaps = steps.cumsum(0).abs()
    tied = torch.zeros_like(gaps, dtype=torch.bool)
    tied[:-1] = values[1:] == values[:-1]  # both functions step at once
    return gaps.masked_fill(tied, 0).amax(0)


def kolmogorov_p_values(ks: Tensor, n: int, m: int) -> Tensor:
    """Asymptotic p-values of two-sample statistics, with Stephens' correction for small samples (1970)."""
    size = (n * m / (n + m)) ** 0.5
    scaled = (size + 0.12 + 0.11 / size) * ks
    k = torch.arange(1, _TERMS + 1, dtype=ks.dtype, device=ks.device)
    series = 2 * ((-1) ** (k - 1) * torch.exp(-2 * (k * scaled[:, None]) ** 2)).sum(1)
    # Below, the series converges too slowly, and the value is 1 to 15 digits.
    return series.where(scaled > 0.2, 1.0).clamp(0, 1)


def holm(p_values: Tensor) -> Tensor:
    """Adjust p-values so that the chance of any false one among all is bounded (Holm 1979)."""
    ascending, order = p_values.sort()
    left = torch.arange(p_values.numel(), 0, -1, device=p_values.device)
    adjusted = (ascending * left).clamp_max(1).cummax(0).values
    return torch.empty_like(adjusted).scatter_(0, order, adjusted)
