"""Stand-ins for Transfer-Learning-Library's losses (``tllib.alignment``, ``tllib.modules.kernels``).

The kernels' mean squared distance takes O(N D) and the losses' index matrices are not built. What differs: a
sample of fewer than 2 rows raises an error, features are matrices, and the quadratic MMD takes samples of
different sizes too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference import mean_squared_distance, squared_distances
from thawkit.ops.pairwise.reference.distances import centre

_SMALLEST_SQUARE = 1e-37  # coinciding points: keep the bandwidth above 0


class GaussianKernel(nn.Module):
    """``tllib.modules.kernels.GaussianKernel``: ``exp(-|x_i - x_j|^2 / (2 s^2))``.

    Args:
        sigma: s, where it is not taken from the data.
        track_running_stats: ``s^2 = alpha`` times the mean squared distance of all pairs, of each row with
            itself too, of the batch at hand: nothing is kept of earlier ones, there or here.
        alpha: that factor.
    """

    def __init__(self, sigma: float | None = None, track_running_stats: bool = True, alpha: float = 1.0):
        super().__init__()
        checks.boolean("track_running_stats", track_running_stats)
        checks.positive_scalar("alpha", alpha)
        if sigma is not None:
            checks.positive_scalar("sigma", sigma)
        elif not track_running_stats:
            raise ThawkitError("sigma must be given where track_running_stats=False, got None")
        self.sigma_square = (
            None if sigma is None else torch.tensor(sigma * sigma, dtype=torch.float64, device="cpu")
        )
        self.track_running_stats = track_running_stats
        self.alpha = alpha

    def square(self, x: Tensor) -> Tensor:
        """Return s^2 (float64) for rows (N, D), without a gradient, and keep it as ``sigma_square``."""
        if self.track_running_stats:
            count = x.shape[0]
            mean = mean_squared_distance(x.double(), x[:0].double()) * ((count - 1) / count)
            self.sigma_square = (self.alpha * mean).clamp_min(_SMALLEST_SQUARE)
        assert self.sigma_square is not None
        return self.sigma_square.to(x.device, torch.float64)

    def forward(self, X: Tensor) -> Tensor:
        """Return the (N, N) kernel matrix of rows (N, D)."""
        checks.matrix("X", X)
        with full_precision(X):
            rows = lifted(X)
            square = self.square(rows)
            rows = rows - centre(rows)  # distances do not see it, rounding does
            return torch.exp(-squared_distances(rows, rows) / (2 * square))

    def of_pairs(self, squares: Tensor, square: Tensor) -> Tensor:
        """Return the kernel of given squared distances."""
        return torch.exp(-squares / (2 * square))


class MultipleKernelMaximumMeanDiscrepancy(nn.Module):
    """``tllib.alignment.dan.MultipleKernelMaximumMeanDiscrepancy``: MK-MMD of two batches of features.

    With :class:`GaussianKernel` the quadratic loss runs on :func:`thawkit.losses.functional.mmd` and the
    linear one in O(N D). Other kernels are modules from (N, D) rows to their (N, N) matrix, which is stored
    for each.

    Args:
        kernels: their values add up.
        linear: take each row with the next one only, instead of all pairs; needs batches of one size.
    """

    def __init__(self, kernels: Sequence[nn.Module], linear: bool | None = False):
        super().__init__()
        self.kernels = tuple(kernels)
        self.linear = linear
        if not self.kernels:
            raise ThawkitError("kernels must hold at least one kernel, got none")

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Return the loss of features (N, D) of the source and of the target, plus ``2 / (N - 1)``."""
        n, m = _check("z_s", z_s, "z_t", z_t, self.linear)
        with full_precision(z_s):
            source, target = lifted(z_s), lifted(z_t)
            if self.linear:
                loss = _linear([(source, target)], [self.kernels])
            elif all(isinstance(kernel, GaussianKernel) for kernel in self.kernels):
                bandwidths = _bandwidths(self.kernels, torch.cat((source, target)))
                loss = F.mmd(z_s, z_t, bandwidths=bandwidths, estimator="unbiased")
            else:
                loss = _quadratic(_sum_of(self.kernels, torch.cat((source, target))), n)
            return loss + 1 / (n - 1) + 1 / (m - 1)


class JointMultipleKernelMaximumMeanDiscrepancy(nn.Module):
    """``tllib.alignment.jan.JointMultipleKernelMaximumMeanDiscrepancy``: JMMD of several layers' features.

    The kernels of a layer add up, and layers multiply. With :class:`GaussianKernel` the quadratic loss runs
    on :func:`thawkit.losses.functional.joint_mmd` and the linear one in O(N D). Other kernels are modules
    from (N, D) rows to their (N, N) matrix, and the quadratic loss then stores a (2 N)^2 matrix for each
    layer.

    Args:
        kernels: for each layer its kernels.
        linear: take each row with the next one only, instead of all pairs.
        thetas: for each layer a module that its features go through first.
    """

    def __init__(
        self,
        kernels: Sequence[Sequence[nn.Module]],
        linear: bool | None = True,
        thetas: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        self.kernels = tuple(tuple(of_layer) for of_layer in kernels)
        if not self.kernels or not all(self.kernels):
            raise ThawkitError("kernels must hold at least one kernel for each layer")
        self.linear = linear
        self.thetas = list(thetas) if thetas else [nn.Identity() for _ in self.kernels]

    def forward(self, z_s: Sequence[Tensor], z_t: Sequence[Tensor]) -> Tensor:
        """Return the loss of the layers' features, each (N, D_l), plus ``2 / (N - 1)``."""
        layers = len(self.kernels)
        if not len(z_s) == len(z_t) == len(self.thetas) == layers:
            raise ThawkitError(
                f"z_s, z_t and thetas must have one entry for each of {layers} layers, "
                f"got {len(z_s)}, {len(z_t)} and {len(self.thetas)}"
            )
        sizes = [
            _check(f"z_s[{i}]", x, f"z_t[{i}]", y, self.linear)
            for i, (x, y) in enumerate(zip(z_s, z_t, strict=True))
        ]
        if len(set(sizes)) > 1:
            raise ThawkitError(f"z_s and z_t must have the same rows in every layer, got {sizes}")
        n, m = sizes[0]
        with full_precision(z_s[0]):
            samples = []
            for x, y, theta in zip(z_s, z_t, self.thetas, strict=True):
                samples.append(lifted(theta(torch.cat((x, y)))).split((n, m)))
            if self.linear:
                loss = _linear(samples, self.kernels)
            elif all(isinstance(kernel, GaussianKernel) for of_layer in self.kernels for kernel in of_layer):
                bandwidths = [
                    _bandwidths(of_layer, torch.cat(pair))
                    for of_layer, pair in zip(self.kernels, samples, strict=True)
                ]
                source, target = zip(*samples, strict=True)
                loss = F.joint_mmd(source, target, bandwidths=bandwidths, estimator="unbiased")
            else:
                matrices = [
                    _sum_of(of_layer, torch.cat(pair))
                    for of_layer, pair in zip(self.kernels, samples, strict=True)
                ]
                loss = _quadratic(torch.stack(matrices).prod(0), n)
            return loss + 1 / (n - 1) + 1 / (m - 1)


class CorrelationAlignmentLoss(nn.Module):
    """``tllib.alignment.coral.CorrelationAlignmentLoss``: differences of covariances and of means."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Return the loss of features (N, D) and (M, D): ``F.coral(f_s, f_t, scale="tllib")``."""
        return F.coral(f_s, f_t, scale="tllib")


def _check(name: str, x: Tensor, other_name: str, y: Tensor, linear: bool | None) -> tuple[int, int]:
    checks.row_pair(name, x, other_name, y)
    for each, sample in ((name, x), (other_name, y)):
        if sample.shape[0] < 2:
            raise ThawkitError(f"{each} must have at least 2 rows, got {sample.shape[0]}")
    if linear and x.shape[0] != y.shape[0]:
        raise ThawkitError(
            f"{name} and {other_name} must have as many rows where linear=True, "
            f"got {x.shape[0]} and {y.shape[0]}"
        )
    return x.shape[0], y.shape[0]


def _bandwidths(kernels: Sequence[nn.Module], rows: Tensor) -> Tensor:
    """(B,) s of Gaussian kernels."""
    return torch.stack([kernel.square(rows) for kernel in kernels]).sqrt()  # type: ignore[operator]  # checked to have it


def _sum_of(kernels: Sequence[nn.Module], rows: Tensor) -> Tensor:
    return torch.stack([kernel(rows) for kernel in kernels]).sum(0)


def _quadratic(values: Tensor, n: int) -> Tensor:
    """Unbiased squared MMD from the kernel matrix of n rows and the others."""
    xx, yy, xy = values[:n, :n], values[n:, n:], values[:n, n:]
    mean_of_others = [
        (block.sum() - block.diagonal().sum()) / (block.shape[0] * (block.shape[0] - 1)) for block in (xx, yy)
    ]
    return mean_of_others[0] + mean_of_others[1] - 2 * xy.mean()


def _linear(layers: Sequence[tuple[Tensor, ...]], kernels: Sequence[Sequence[nn.Module]]) -> Tensor:
    """Mean over i of ``k(s_i, s_j) + k(t_i, t_j) - k(s_i, t_j) - k(s_j, t_i)``, j being the row after i."""
    products: Tensor | None = None
    for (source, target), of_layer in zip(layers, kernels, strict=True):
        both = torch.cat((source, target))
        pairs = _next_pairs(both)
        squares = torch.stack([(both[i] - both[j]).square().sum(1) for i, j in pairs])
        values = torch.zeros_like(squares)
        for kernel in of_layer:
            if isinstance(kernel, GaussianKernel):
                values = values + kernel.of_pairs(squares, kernel.square(both))
            else:
                matrix = kernel(both)
                values = values + torch.stack([matrix[i, j] for i, j in pairs])
        products = values if products is None else products * values
    assert products is not None
    means = products.mean(1)
    crossed = means[2] + means[3]
    if products.shape[1] == 2:  # both rows follow each other: their pairs count once, as there
        crossed = crossed / 2
    return means[0] + means[1] - crossed


def _next_pairs(both: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Indices of (s_i, s_j), (t_i, t_j), (s_i, t_j) and (s_j, t_i)."""
    n = both.shape[0] // 2
    i = torch.arange(n, device=both.device)
    j = (i + 1) % n
    return [(i, j), (n + i, n + j), (i, n + j), (j, n + i)]
