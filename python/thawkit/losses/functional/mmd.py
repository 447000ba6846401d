"""Maximum mean discrepancy as a function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise
from thawkit.ops.pairwise.common import lifted
from thawkit.ops.pairwise.estimators import mmd_of_blocks, mmd_of_features, mmd_of_means, mmd_of_pairs
from thawkit.ops.pairwise.mmd_weights import pair_weights
from thawkit.ops.pairwise.reference.kernels import KERNELS, SCALED, Kernel
from thawkit.ops.pairwise.reference.mmd import Sample, Weights

__all__ = ["joint_mmd", "local_mmd", "mmd"]

Bandwidths = Tensor | tuple[float, int] | str
OF_ALL_PAIRS = ("biased", "unbiased")
ESTIMATORS = (*OF_ALL_PAIRS, "linear", "block", "rff")


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    bandwidths: Bandwidths = "mean",
    estimator: str = "biased",
    weights: tuple[Tensor, Tensor] | None = None,
    class_conditional: tuple[Tensor, Tensor] | None = None,
    degree: int = 3,
    offset: float = 1.0,
    block_size: int | None = None,
    features: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy between two samples (Gretton et al. 2012).

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``. No matrix of pairs is stored, only the upper triangle
    of pairs is computed, and the gradient is ready with the value, that of learned bandwidths included.

    ========== ====================================== ================================================
    kernel     k(u, v), d being |u - v|
    ========== ====================================== ================================================
    rbf        ``sum_b exp(-d^2 / (2 s_b^2))``
    laplace    ``sum_b exp(-d / s_b)``                d is Euclidean, as in geomloss
    imq        ``sum_b s_b^2 / (s_b^2 + d^2)``        inverse multiquadric of Tolstikhin et al. (2018)
    energy     ``-d``                                 the energy distance (Szekely and Rizzo 2013)
    linear     ``<u, v>``                             squared distance of the means, in O((N + M) D)
    poly       ``(<u, v> / D + offset)^degree``       unbiased, it is KID's (Binkowski et al. 2018)
    ========== ====================================== ================================================

    Where d is 0 the gradients of laplace and energy are 0, the middle of all slopes there; squares of no more
    than rounding leaves of two equal rows count as 0.

    Args:
        x: (N, D) sample, e.g. features of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        kernel: see above.
        bandwidths: of rbf, laplace and imq. A (B,) tensor of s_b > 0, which may require a gradient; or
            ``(multiplier, count)``: s_b^2 is the mean squared distance of all pairs times ``multiplier`` to
            the powers centred on 0, without a gradient, as the domain-adaptation literature has it (Long et
            al. 2015); ``"mean"`` is ``(2.0, 5)``; ``"median"``: one s, the median distance of all pairs of
            rows of both samples (Gretton et al. 2012, section 8; the lower one of two in the middle), exact
            and without a gradient; where most rows coincide and it is 0, the root of the mean square.
        estimator: ``biased`` (V-statistic, eq. 5, negative by rounding at most); ``unbiased`` (U-statistic,
            eq. 3, which can be negative); ``linear`` (section 6: over disjoint pairs, row i with row
            i + min(N, M) // 2, in O((N + M) D), unbiased); ``block`` (the mean of the U-statistics of
            disjoint blocks, Zaremba et al. 2013); ``rff`` (random Fourier features of rbf and laplace,
            Rahimi and Recht 2007: an estimate of ``biased`` in O((N + M) D L)). ``linear`` and ``block`` use
            rows in order, as many of both samples, and leave the rest out: shuffle what is sorted.
        weights: (N,) and (M,) numbers from 0 up for the rows of x and y, divided by their sums; for
            ``biased``, ``unbiased`` and ``rff``. With w the weights, the U-statistic is
            ``sum_{i != j} w_i w_j k(x_i, x_j) / (1 - sum_i w_i^2)`` and alike for y, less
            ``2 sum_ij w_i w_j k(x_i, y_j)``; equal weights give the plain one.
        class_conditional: (N,) and (M,) integer labels: the mean over the classes that both samples have of
            the squared MMD between x and y within the class; 0 where there is none. A class with one row in a
            sample does not count where ``unbiased``. For ``biased`` and ``unbiased``.
        degree: of the poly kernel, from 1 up.
        offset: of the poly kernel.
        block_size: rows of a block in each sample, at least 2; None is the root of the smaller sample,
            rounded down.
        features: number L of frequencies of ``rff``, each a cosine and a sine.
        generator: what the frequencies are drawn with, on its own device.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample is too small, an unknown name, options
            that do not go together.
    """
    checks.one_of("estimator", estimator, ESTIMATORS)
    checks.row_pair("x", x, "y", y)
    all_pairs = estimator in OF_ALL_PAIRS
    if weights is not None and not (all_pairs or estimator == "rff"):
        raise ThawkitError(f"weights go with the estimators biased, unbiased and rff, not with {estimator!r}")
    if class_conditional is not None and not all_pairs:
        raise ThawkitError(
            f"class_conditional goes with the estimators biased and unbiased, not with {estimator!r}"
        )
    layer = sample_of(x, y, kernel, bandwidths, degree, offset)
    if estimator == "linear":
        return mmd_of_pairs(layer)
    if estimator == "block":
        return mmd_of_blocks(layer, block_size)
    unbiased = estimator == "unbiased"
    pairs = pair_weights(x, y, unbiased=unbiased, weights=weights, labels=_pair(class_conditional))
    if estimator == "rff":
        return mmd_of_features(layer, pairs, features, generator)
    if kernel == "linear" and class_conditional is None:
        return mmd_of_means(layer, pairs, unbiased)
    return _pairwise.mmd([layer], pairs, unbiased=unbiased)


def joint_mmd(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    *,
    kernel: str | Sequence[str] = "rbf",
    bandwidths: Bandwidths | Sequence[Bandwidths] = "mean",
    estimator: str = "biased",
    weights: tuple[Tensor, Tensor] | None = None,
    class_conditional: tuple[Tensor, Tensor] | None = None,
    degree: int = 3,
    offset: float = 1.0,
) -> Tensor:
    """Squared joint MMD of what several layers see of two samples (Long et al. 2017, JAN, eq. 9).

    The MMD of :func:`mmd` with the product of the layers' kernels. All scores of a block of pairs are in
    cache together, and the gradients of all layers come from one pass.

    Args:
        x: for each layer the (N, D_l) features of the source.
        y: for each layer the (M, D_l) features of the target.
        kernel: one for all layers, or a list with one for each.
        bandwidths: as in :func:`mmd`; one choice for all layers, or a list with one for each.
        estimator: ``biased`` or ``unbiased``.
        weights: of the rows, as in :func:`mmd`.
        class_conditional: labels of the rows, as in :func:`mmd`.
        degree: of poly kernels.
        offset: of poly kernels.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: as in :func:`mmd`; x and y are no sequences of as many layers.
    """
    checks.one_of("estimator", estimator, OF_ALL_PAIRS)
    if not isinstance(x, list | tuple) or not isinstance(y, list | tuple) or not len(x) == len(y) > 0:
        raise ThawkitError("x and y must be lists of as many tensors, one a layer")
    kernels = kernel if isinstance(kernel, list | tuple) else [kernel] * len(x)
    each = bandwidths if isinstance(bandwidths, list) else [bandwidths] * len(x)
    for name, choices in (("kernel", kernels), ("bandwidths", each)):
        if len(choices) != len(x):
            raise ThawkitError(
                f"{name} must be one for all layers or a list of {len(x)}, one a layer, got {len(choices)}"
            )
    layers = [sample_of(a, b, k, s, degree, offset) for a, b, k, s in zip(x, y, kernels, each, strict=True)]
    unbiased = estimator == "unbiased"
    pairs = pair_weights(x[0], y[0], unbiased=unbiased, weights=weights, labels=_pair(class_conditional))
    return _pairwise.mmd(layers, pairs, unbiased=unbiased)


def local_mmd(
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    *,
    kernel: str = "rbf",
    bandwidths: Bandwidths = "mean",
    degree: int = 3,
    offset: float = 1.0,
) -> Tensor:
    """Local MMD: class by class, rows weighted by how far they belong to it (Zhu et al. 2020, DSAN, eq. 5-6).

    ``mean_c | sum_i w_i^sc phi(x_i) - sum_j w_j^tc phi(y_j) |^2``, the weights of a class being the rows'
    shares in it divided by their sum. The mean is over the classes of a positive sum in both samples; 0 where
    there is none. A class that is to be left out has its probabilities set to 0.

    Args:
        x: (N, D) features of the source.
        y: (M, D) features of the target.
        labels: (N,) classes of the source's rows, or (N, C) shares.
        probabilities: (M, C) predicted class probabilities of the target's rows. They get no gradient, as in
            the authors' code.
        kernel: as in :func:`mmd`.
        bandwidths: as in :func:`mmd`.
        degree: of the poly kernel.
        offset: of the poly kernel.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a label is no class, a share is negative, an
            unknown name.
    """
    checks.row_pair("x", x, "y", y)
    shares_x, shares_y = _shares(x, y, labels, probabilities)
    x, y = lifted(x), lifted(y)  # as the shares are, whose sums half precision may not hold
    total_x, total_y = shares_x.sum(0), shares_y.sum(0)
    common = (total_x > 0) & (total_y > 0)
    # each of both sides takes the root of what a class counts
    part = common.to(shares_y.dtype) / common.sum().clamp_min(1).to(shares_y.dtype).sqrt()
    shares_x, shares_y = (
        shares / total.where(common, 1) * part for shares, total in ((shares_x, total_x), (shares_y, total_y))
    )
    shares = Sample(shares_x, shares_y, Kernel("linear"), None)
    ones = Weights(shares_x.new_ones(x.shape[0]), shares_y.new_full((y.shape[0],), -1.0))
    return _pairwise.mmd([sample_of(x, y, kernel, bandwidths, degree, offset), shares], ones)


def _shares(x: Tensor, y: Tensor, labels: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    checks.matrix("probabilities", probabilities)
    checks.same_device("probabilities", probabilities, "y", y)
    rows, classes = probabilities.shape
    if rows != y.shape[0] or classes == 0:
        raise ThawkitError(
            f"probabilities must have shape ({y.shape[0]}, classes), a row each of y, got {(rows, classes)}"
        )
    dtype = lifted(x).dtype
    shares_y = _not_negative("probabilities", probabilities).to(dtype)
    if isinstance(labels, Tensor) and labels.is_floating_point():
        checks.same_device("labels", labels, "x", x)
        if labels.shape != (x.shape[0], classes):
            raise ThawkitError(
                f"labels must have shape ({x.shape[0]},) or, of shares, ({x.shape[0]}, {classes}), "
                f"got {tuple(labels.shape)}"
            )
        return _not_negative("labels", labels).to(dtype), shares_y
    checks.labels("labels", labels, "x", x)
    if (
        checks.readable(labels)
        and labels.numel()
        and not 0 <= int(labels.min()) <= int(labels.max()) < classes
    ):
        raise ThawkitError(
            f"labels must be from 0 to {classes - 1}, as probabilities has {classes} columns, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype), shares_y


def _not_negative(name: str, shares: Tensor) -> Tensor:
    shares = shares.detach()
    if checks.readable(shares) and bool((shares < 0).any()):
        raise ThawkitError(f"{name} must hold numbers from 0 up, got {shares.min().item()}")
    return shares


def _pair(labels: object) -> tuple[Tensor, Tensor] | None:
    if labels is None:
        return None
    if not isinstance(labels, tuple | list) or len(labels) != 2:
        raise ThawkitError(
            f"class_conditional must be (labels of x, labels of y), got {type(labels).__name__}"
        )
    return labels[0], labels[1]


def sample_of(
    x: Tensor,
    y: Tensor,
    kernel: str,
    bandwidths: Bandwidths,
    degree: int,
    offset: float,
    unasked: str = "mean",
) -> Sample:
    """Return a layer with its kernel and rates ``1 / s_b^2``; ``unasked`` are the bandwidths nobody chose."""
    checks.one_of("kernel", kernel, KERNELS)
    checks.row_pair("x", x, "y", y)
    if kernel not in SCALED:
        if not isinstance(bandwidths, str) or bandwidths != unasked:
            raise ThawkitError(f"bandwidths go with the kernels {', '.join(SCALED)}, not with {kernel!r}")
        if kernel != "poly":
            return Sample(x, y, Kernel(kernel), None)
        checks.integer("degree", degree, 1)
        checks.finite("offset", offset)
        return Sample(x, y, Kernel(kernel, degree=int(degree), offset=float(offset)), None)
    if isinstance(bandwidths, Tensor):
        return Sample(x, y, Kernel(kernel), _rates(bandwidths))
    if isinstance(bandwidths, str) and bandwidths == "median":
        median = _pairwise.usual_squared_distance(x, y)
        return Sample(x, y, Kernel(kernel), 1 / median[None].clamp_min(1e-290))  # of equal rows: finite
    multiplier, count = _multiplier_and_count(bandwidths)
    exponents = torch.arange(1 - count + count // 2, count // 2 + 1, dtype=torch.float64, device=x.device)
    rates = multiplier**exponents  # made where they are used: a copy would wait for the GPU
    # Each squaring doubles the relative rounding error of the one exponential that they start from.
    doubling = kernel == "rbf" and multiplier == 2.0 and count <= 8
    return Sample(x, y, Kernel(kernel, relative=True, doubling=doubling), rates)


def _rates(bandwidths: Tensor) -> Tensor:
    checks.floating("bandwidths", bandwidths)
    if bandwidths.dim() != 1 or bandwidths.numel() == 0:
        raise ThawkitError(f"bandwidths must have shape (kernels,), got {tuple(bandwidths.shape)}")
    if checks.readable(bandwidths) and not bool((bandwidths.isfinite() & (bandwidths > 0)).all()):
        raise ThawkitError(f"bandwidths must be positive and finite, got {bandwidths.tolist()}")
    return bandwidths.double().square().reciprocal()


def _multiplier_and_count(bandwidths: object) -> tuple[float, int]:
    if isinstance(bandwidths, str) and bandwidths == "mean":
        return 2.0, 5
    if isinstance(bandwidths, tuple) and len(bandwidths) == 2:
        multiplier, count = bandwidths
        numbers = isinstance(count, int) and isinstance(multiplier, int | float)
        if numbers and 1 <= count <= 60 and 1 < multiplier <= 2.0 ** (100 / count):
            return float(multiplier), count
    raise ThawkitError(
        "bandwidths must be 'mean', 'median', a tensor of positive numbers, or (multiplier, count) "
        "with multiplier > 1, 1 <= count <= 60 and multiplier**count <= 2**100 (float32 ends there), "
        f"got {bandwidths!r}"
    )
