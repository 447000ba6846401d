"""MMD between two Gaussians converges to its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from thawkit.losses import functional as F


def closed_form(shift, variances, features, bandwidth):
    """E k(x, x') + E k(y, y') - 2 E k(x, y), each of an RBF kernel of two isotropic Gaussians.

    ``E k = (s^2 / (s^2 + v))^(D / 2) exp(-|d|^2 / (2 (s^2 + v)))`` with v the sum of both variances and d the
    difference of the means.
    """

    def mean_kernel(v, distance):
        total = bandwidth**2 + v
        return (bandwidth**2 / total) ** (features / 2) * math.exp(-(distance**2) / (2 * total))

    p, q = variances
    return mean_kernel(2 * p, 0) + mean_kernel(2 * q, 0) - 2 * mean_kernel(p + q, shift * features**0.5)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(("shift", "variances"), [(0.0, (1.0, 1.0)), (0.5, (1.0, 1.0)), (0.2, (1.0, 2.0))])
def test_mmd_converges_to_the_closed_form(shift, variances, estimator):
    features, bandwidths = 3, (1.0, 3.0)
    truth = sum(closed_form(shift, variances, features, s) for s in bandwidths)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for count in (100, 1000, 10_000):
        x = torch.randn(count, features, generator=generator) * variances[0] ** 0.5
        y = torch.randn(count, features, generator=generator) * variances[1] ** 0.5 + shift
        value = F.mmd(x, y, bandwidths=torch.tensor(bandwidths), estimator=estimator)
        errors.append(abs(value.item() - truth))
        # Four standard deviations of the U-statistic, whose variance is 4 (Var h(x) + Var h(y)) / N with each
        # Var h below 0.016 here, and 4 / N for the V-statistic's bias and where h is 0.
        assert errors[-1] < 4 * (4 * 2 * 0.016 / count) ** 0.5 + 4 / count
    assert errors[-1] < 0.01
    if shift:
        assert errors[-1] < truth / 5
