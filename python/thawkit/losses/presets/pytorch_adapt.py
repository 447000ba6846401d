"""Stand-ins for pytorch-adapt's losses (``pytorch_adapt.layers``).

Kernels are ``exp(-s d^2 / b)``, averaged over the scales s; b is the median of the squared distances within
the first sample, of each row with itself too, taken without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference import squared_distances
from thawkit.ops.pairwise.reference.distances import centre
from thawkit.ops.pairwise.reference.order import FEW_ROWS, ranked_squared_distance


class MMDLoss(nn.Module):
    """``pytorch_adapt.layers.MMDLoss``: unbiased squared MMD of features, or joint MMD of lists of features.

    The quadratic losses run on :func:`thawkit.losses.functional.joint_mmd`, the linear ones take O(N D).
    Finding b takes the N^2 distances of the first sample: up to 1024 rows they are stored, of more they are
    counted in O(N) memory.

    Args:
        kernel_scales: s, a number or a tensor of several.
        mmd_type: ``linear``: pairs of neighbouring rows of samples of one size; ``quadratic``: all pairs.
        dist_func: None only: squared Euclidean distances.
        bandwidth: b; None: the median.
    """

    def __init__(
        self,
        kernel_scales: float | Tensor = 1,
        mmd_type: str = "linear",
        dist_func: object = None,
        bandwidth: float | None = None,
    ):
        super().__init__()
        checks.one_of("mmd_type", mmd_type, ("linear", "quadratic"))
        only(None, dist_func=dist_func)
        if not isinstance(kernel_scales, Tensor):
            checks.positive_scalar("kernel_scales", kernel_scales)
        if bandwidth is not None:
            checks.positive_scalar("bandwidth", bandwidth)
        self.kernel_scales = kernel_scales
        self.mmd_type = mmd_type
        self.bandwidth = bandwidth

    def forward(self, x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss of features (N, D) and (M, D), or of lists of such features, one entry a layer."""
        layers = _layers(x, y)
        for pair in layers:
            self._check(*pair)
        with full_precision(layers[0][0]):
            if self.mmd_type == "linear":
                return self._linear(layers)
            return self._quadratic(layers)

    def _check(self, x: Tensor, y: Tensor) -> None:
        checks.row_pair("x", x, "y", y)
        for name, sample in (("x", x), ("y", y)):
            if sample.shape[0] < 2:
                raise ThawkitError(f"{name} must have at least 2 rows, got {sample.shape[0]}")
        if self.mmd_type == "linear" and x.shape != y.shape:
            raise ThawkitError(
                f"x and y must have the same batch size where mmd_type='linear', "
                f"got {x.shape[0]} and {y.shape[0]}"
            )

    def _scales(self, like: Tensor) -> Tensor:
        """(K,) numbers s."""
        if isinstance(self.kernel_scales, Tensor):
            return self.kernel_scales.reshape(-1).to(like)
        return like.new_full((1,), self.kernel_scales)

    @torch.no_grad()
    def _median(self, x: Tensor) -> Tensor:
        """b, without a gradient."""
        if self.bandwidth is not None:
            return torch.full((), self.bandwidth, dtype=x.dtype, device=x.device)
        median = self._median_of(x)
        if checks.readable(median) and not median > 0:
            raise ThawkitError(
                "bandwidth must be given where the median of the squared distances within x, of each row "
                f"with itself too, is not positive: it is {median.item()}, of {x.shape[0]} rows"
            )
        return median

    def _median_of(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows <= FEW_ROWS:
            return _squares(x, x).median()
        return ranked_squared_distance(x, (rows * rows - 1) // 2, ordered=True)

    def _quadratic(self, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        bandwidths, kernels = [], 1
        for x, _ in layers:
            median = self._median(lifted(x))
            scales = self._scales(median)
            bandwidths.append((median / (2 * scales)).sqrt())
            kernels *= scales.numel()
        source, target = zip(*layers, strict=True)
        return F.joint_mmd(source, target, bandwidths=bandwidths, estimator="unbiased") / kernels

    def _mean_kernel(self, squares: Tensor, median: Tensor) -> Tensor:
        scales = self._scales(median) / median
        total = torch.zeros_like(squares)
        for scale in scales.unbind():
            total = total + torch.exp(-squares * scale)
        return total / scales.numel()

    def _linear(self, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Rows 2 i and 2 i + 1: ``k(x, x') + k(y, y') - k(x, y') - k(x', y)``, over the number of pairs."""
        products: Tensor | None = None
        for x, y in layers:
            x, y = lifted(x), lifted(y)
            pairs = x.shape[0] // 2
            x1, x2, y1, y2 = x[: 2 * pairs : 2], x[1::2], y[: 2 * pairs : 2], y[1::2]
            gaps = torch.stack((x1 - x2, y1 - y2, x1 - y2, x2 - y1))
            values = self._mean_kernel(gaps.square().sum(2), self._median(x))
            products = values if products is None else products * values
        assert products is not None
        means = products.mean(1)
        return means[0] + means[1] - means[2] - means[3]


class MMDBatchedLoss(MMDLoss):
    """``pytorch_adapt.layers.MMDBatchedLoss``: the quadratic loss, whose b is a median of medians.

    Of each ``batch_size`` rows of the first sample the median of their distances to all of its rows is taken,
    and of those the median, in O(batch_size N) memory. The loss itself needs no batches here.

    Args:
        batch_size: rows of the first sample whose distances are looked at together.
        **kwargs: of :class:`MMDLoss`; ``mmd_type`` must be ``quadratic``.
    """

    def __init__(self, batch_size: int = 1024, **kwargs: Any):
        super().__init__(**kwargs)
        checks.integer("batch_size", batch_size, 1)
        if self.mmd_type != "quadratic":
            raise ThawkitError(f"mmd_type must be 'quadratic', got {self.mmd_type!r}")
        self.batch_size = batch_size

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]  # no lists, as there
        """Return the loss of features (N, D) and (M, D)."""
        if isinstance(x, list | tuple) or isinstance(y, list | tuple):
            raise ThawkitError("x and y must be tensors, got lists of features")
        return super().forward(x, y)

    def _median_of(self, x: Tensor) -> Tensor:
        return torch.stack([_squares(rows, x).median() for rows in x.split(self.batch_size)]).median()


class CORALLoss(nn.Module):
    """``pytorch_adapt.layers.CORALLoss``: Deep CORAL."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of features (N, D) and (M, D)."""
        return F.coral(x, y, scale="deep_coral")


def _layers(x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return [(x, y)]
    if isinstance(x, list | tuple) and isinstance(y, list | tuple) and len(x) == len(y) > 0:
        return list(zip(x, y, strict=True))
    raise ThawkitError(
        f"x and y must be two tensors, or two lists of as many, got {type(x).__name__} and {type(y).__name__}"
    )


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared distances, exactly 0 of a row to itself: zeros are among what the median is of."""
    middle = centre(x, y)
    squares = squared_distances(x - middle, y - middle)
    return squares if x is not y else squares * (1 - torch.eye(x.shape[0], dtype=x.dtype, device=x.device))
