"""The definition of MMD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.ops.pairwise.reference.distances import centre, squared_distances
from thawkit.ops.pairwise.reference.kernels import OF_DISTANCES, Kernel, matrix
from thawkit.ops.pairwise.reference.order import FEW_ROWS, ranked_squared_distance

_LEAST_SQUARE = 1e-290  # that a mean squared distance counts as, of equal rows: rates stay finite


_LARGEST_RATE = 1e300  # that a rate 1 / s^2 counts as: it and its products with squares of 0 stay finite


def largest_rate(dtype: torch.dtype) -> float:
    """Return what a rate in units is not to exceed in ``dtype``, for the same reason."""
    return _LARGEST_RATE if dtype == torch.float64 else 2e37


def mean_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ``|u - v|^2`` over the pairs of distinct rows of both samples, in O((N + M) D), detached.

    Uses ``mean |u - v|^2 = 2 (mean |z|^2 - |mean z|^2)``, about the mean so that no digits are lost.
    """
    z = torch.cat((x.detach(), y.detach()))
    count = z.shape[0]
    return (z - z.mean(0)).square().sum() * (2.0 / max(count - 1, 1))


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Median of ``|u - v|^2`` over the pairs of distinct rows of both samples, detached.

    Of an even number of pairs it is the lower of the two in the middle, as in ``torch.median``.
    """
    z = torch.cat((x.detach(), y.detach()))
    count = z.shape[0]
    if count < 2:
        return z.new_zeros(())
    if count > FEW_ROWS:
        return ranked_squared_distance(z, (count * (count - 1) // 2 - 1) // 2)
    rows = z - centre(z)
    first, second = torch.triu_indices(len(rows), len(rows), 1, device=z.device).unbind()
    return squared_distances(rows, rows)[first, second].median()


class Sample(NamedTuple):
    """What one layer sees of both samples, and its kernel."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    kernel: Kernel
    rates: Tensor | None  # (B,)


class Weights(NamedTuple):
    """What each pair of rows counts: ``a_i a_j``, y's a being negative, within a sample times ``same_i``.

    Rows with different labels count nothing, nor does a row with itself where ``same`` is given: the
    U-statistic.
    """

    x: Tensor  # (N,)
    y: Tensor  # (M,)
    same: tuple[Tensor, Tensor] | None = None  # (N,) and (M,), one number for all rows of a label
    labels: tuple[Tensor, Tensor] | None = None  # (N,) and (M,)


def absolute(kernel: Kernel, rates: Tensor | None, x: Tensor, y: Tensor) -> Tensor | None:
    """Return the rates ``1 / s_b^2`` in numbers (float64), those that are relative without a gradient."""
    if rates is None:
        return None
    if kernel.relative:
        rates = rates / mean_squared_distance(x.double(), y.double()).clamp_min(_LEAST_SQUARE)
    return rates.double().clamp_max(_LARGEST_RATE)


def in_units(
    kernel: Kernel, rates: Tensor | None, x: Tensor, y: Tensor
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | float]:
    """Return absolute rates and rows in units that keep squares within the dtype, and what that divides by.

    Units are near the bandwidths where a kernel has them, else near the distances of rows; they are powers of
    2, which change no digit.
    """
    if rates is not None:
        largest = torch.stack([z.detach().abs().amax() for z in (x, y) if z.numel()] or [x.new_zeros(())])
        largest = largest.amax().double()
        room = (50 - largest.log2()).where(largest.isfinite(), 126)  # rows of 2^50 have squares in float32
        exponent = (rates.detach().double().log2().mean() / 2).minimum(room).floor().clamp(-126, 126)
        unit = exponent.exp2()
        rates = (rates.double() / unit.square()).clamp_max(largest_rate(x.dtype))
        return rates, x * unit.to(x.dtype), y * unit.to(y.dtype), 1.0
    if kernel.name == "poly":
        return None, x, y, 1.0
    mean = mean_squared_distance(x.double(), y.double())
    unit = (-mean.where(mean > 0, 1).log2() / 2).round().clamp(-60, 60).exp2()  # float32 holds its square
    divisor = unit if kernel.name == "energy" else unit.square()
    return None, x * unit.to(x.dtype), y * unit.to(y.dtype), divisor.to(x.dtype)


def mmd(layers: Sequence[Sample], weights: Weights) -> Tensor:
    """Sum of ``c_ij prod_l k_l(z_i, z_j)`` over all pairs of rows of both samples.

    With ``c_ij = 1 / N^2``, ``1 / M^2`` and ``-1 / (N M)`` and one layer this is the squared MMD of Gretton
    et al. (2012), eq. 5, with several layers the joint MMD of Long et al. (2017), eq. 9.
    """

    def blocks(layer: Sample) -> tuple[Tensor, Tensor, Tensor]:
        x, y, kernel = layer.x, layer.y, layer.kernel
        rates = absolute(kernel, layer.rates, x, y)
        if kernel.name in OF_DISTANCES:
            middle = centre(x, y)  # distances do not see it, rounding does
            x, y = x - middle, y - middle
        rates, x, y, divisor = in_units(kernel, rates, x, y)
        xx, yy, xy = (matrix(kernel, rates, u, v) / divisor for u, v in ((x, x), (y, y), (x, y)))
        return xx, yy, xy

    xx, yy, xy = blocks(layers[0])
    for layer in layers[1:]:
        xx, yy, xy = (a * b for a, b in zip((xx, yy, xy), blocks(layer), strict=True))
    if weights.labels is not None:
        of_x, of_y = (label[:, None] for label in weights.labels)
        xx, yy = xx.where(of_x == of_x.t(), 0), yy.where(of_y == of_y.t(), 0)
        xy = xy.where(of_x == of_y.t(), 0)
    own_x = own_y = torch.ones((), dtype=xx.dtype, device=xx.device)
    if weights.same is not None:
        own_x, own_y = weights.same
        xx, yy = _without_diagonal(xx), _without_diagonal(yy)
    a, b = weights.x, weights.y
    return (own_x * a) @ (xx @ a) + (own_y * b) @ (yy @ b) + 2 * a @ (xy @ b)


def _without_diagonal(square: Tensor) -> Tensor:
    own = torch.eye(square.shape[0], dtype=torch.bool, device=square.device)
    return square.masked_fill(own, 0)
