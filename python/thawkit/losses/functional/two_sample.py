"""Are two samples from one distribution? The permutation test of MMD, and what makes a kernel powerful."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses.functional.bandwidth import absolute_bandwidths
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference import power_criterion, squared_distances
from thawkit.ops.pairwise.reference.distances import centre

__all__ = ["GaussianTerms", "MMDTestResult", "mmd_power", "mmd_test"]

ESTIMATORS = ("unbiased", "biased")


@runtime_checkable
class GaussianTerms(Protocol):
    """A kernel that is a sum of Gaussians of rows that it makes itself, such as a deep kernel."""

    def terms(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, (N, F) rows) pairs such that ``k(i, j) = sum weight exp(-|row_i - row_j|^2)``."""
        ...


class MMDTestResult(NamedTuple):
    """What :func:`mmd_test` found.

    Attributes:
        statistic: the squared MMD of the two samples.
        p_value: ``(1 + #) / (1 + P)``, # being how many of the P permutations have a statistic at least as
            large. Never 0.
        null_sample: (P,) float64 statistics of the permutations.
        power_criterion: ``MMD^2 / sigma_H1`` (Liu et al. 2020), by which kernels can be compared on data that
            are not tested; NaN where a sample has one row.
        bandwidth: (B,) the kernels' bandwidths s_b; empty where the kernel brings its own.
    """

    statistic: float
    p_value: float
    null_sample: Tensor
    power_criterion: float
    bandwidth: Tensor


class _Gaussians(NamedTuple):
    weight: Tensor | float
    rows: Tensor
    gamma: Tensor
    doubling: bool


@torch.no_grad()
def mmd_test(
    x: Tensor,
    y: Tensor,
    permutations: int = 1000,
    *,
    kernel: str | GaussianTerms = "rbf",
    bandwidths: Tensor | tuple[float, int] | str = "median",
    estimator: str = "unbiased",
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> MMDTestResult:
    """Permutation test of whether two samples come from one distribution (Gretton et al. 2012, sec. 5).

    Under that hypothesis rows could as well have been dealt out to the samples in any other way, so the
    squared MMD ranks like that of random re-deals, and ``P(p_value <= a) <= a`` for every a, whatever the
    sizes of the samples. All permutations are worked off in one pass over the kernel matrix, of which only
    the upper triangle is computed and nothing stored: with K's rows summed, ``w^T K w`` of each permutation's
    0/1 vector w gives all three of its sums. In O((N + M)^2 (D + P)) time and O((N + M) (D + P)) memory.

    The p-value is that of one look. Whoever tests again and again until it is small will see it small.

    Args:
        x: (N, D) sample.
        y: (M, D) sample; M need not be N.
        permutations: P. The smallest p-value is ``1 / (1 + P)``.
        kernel: ``rbf``; or a :class:`~thawkit.losses.DeepKernel`, whose inputs can have any shape (N, ...).
            It must not have seen the samples that are tested.
        bandwidths: of the RBF kernels, as for :func:`thawkit.losses.functional.mmd`; both samples determine
            them together, so that the test stays exact. ``median``: one kernel, with the median distance of
            the pairs of all rows, or of 2000 of them.
        estimator: ``unbiased`` (U-statistic, at least 2 rows each) or ``biased``.
        seed: of the permutations: the same one gives the same result. None: drawn from ``generator``.
        generator: on the CPU; None: torch's own.

    Returns:
        The result, with Python numbers and a tensor of the null distribution.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample is too small or holds numbers that are
            not finite, an unknown name.
    """
    checks.integer("permutations", permutations, 1)
    checks.one_of("estimator", estimator, ESTIMATORS)
    n, m = _check_samples(x, y, 2 if estimator == "unbiased" else 1, isinstance(kernel, GaussianTerms))
    for name, sample in (("x", x), ("y", y)):
        if not bool(sample.isfinite().all()):
            raise ThawkitError(f"{name} must be finite, but {_unusable(sample)} of its rows are not")
    with full_precision(x):
        terms, bandwidth = _terms(x, y, kernel, bandwidths)
    own = sum(term.weight * term.gamma.numel() for term in terms)
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    checks.integer("seed", seed)

    statistics, sums = [], None
    together = max(_LEAST_TOGETHER, _BYTES // (n + m))
    for start in range(0, permutations + 1, together):
        count = min(together, permutations + 1 - start)
        chosen = _pairwise.subsets(n + m, n, count, seed % 2**64, start)
        if start == 0:  # the first one is the samples as they are
            chosen[:, 0] = torch.arange(n + m, device="cpu") < n
        within, from_chosen, row_sums = _sums(terms, chosen.to(x.device), n)
        statistics.append(_statistics(within, from_chosen, row_sums.sum(), n, m, own, estimator))
        sums = row_sums if sums is None else sums
    observed, null = torch.cat(statistics).split((1, permutations))
    assert sums is not None
    # Re-deals with the same statistic, such as the two samples swapped, are not to differ by rounding. It is
    # that of sums over the matrix over the square of a sample's size, and evens out between rows.
    rounding = torch.finfo(terms[0].rows.dtype).eps * sums.abs().sum() / min(n, m) ** 2.5
    reached = int((null >= observed - 16 * rounding).sum())
    return MMDTestResult(
        observed.item(),
        (1 + reached) / (1 + permutations),
        null,
        float("nan") if min(n, m) < 2 else power_criterion(sums, n, own, _pair_values(terms, n, m)).item(),
        bandwidth,
    )


_BYTES = 1 << 26  # of the permutations at a time
_LEAST_TOGETHER = 64  # permutations


def mmd_power(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str | GaussianTerms = "rbf",
    bandwidths: Tensor | tuple[float, int] | str = "median",
) -> Tensor:
    """Power criterion ``MMD^2 / sigma_H1`` of a kernel on two samples (Liu et al. 2020, eqs. 3 and 5).

    The larger it is, the fewer rows a test needs; kernels are trained by its gradient, on data that are not
    tested afterwards. For samples of one size it is the paper's, of the pairs (x_i, y_i), with lambda = 1e-8;
    for others see :func:`thawkit.ops.pairwise.reference.power_criterion`. In plain PyTorch, with the
    (N + M)^2 kernel matrix: made for batches.

    Args:
        x: (N, D) sample, at least 2 rows.
        y: (M, D) sample, at least 2 rows.
        kernel: as for :func:`mmd_test`; gradients go through a deep kernel to its parameters.
        bandwidths: as for :func:`mmd_test`; a tensor gets a gradient, the others are taken without one.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: as :func:`mmd_test`.
    """
    n, m = _check_samples(x, y, 2, isinstance(kernel, GaussianTerms))
    with full_precision(x):
        terms, _ = _terms(x, y, kernel, bandwidths)
        own = sum(term.weight * term.gamma.numel() for term in terms)
        values = _kernel_values(terms)
        values = values - values.diagonal().diag()
        sums = torch.stack((values[:, :n].sum(1), values[:, n:].sum(1)), 1)
        return power_criterion(sums, n, own, values[:n, n:].diagonal() if n == m else None)


def _check_samples(x: Tensor, y: Tensor, least: int, any_shape: bool) -> tuple[int, int]:
    if any_shape:
        checks.floating("x", x)
        checks.floating("y", y)
        checks.same_device("y", y, "x", x)
        if x.dim() < 2 or x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
            raise ThawkitError(
                "x and y must have shapes (N, ...) and (M, ...) and one dtype, "
                f"got {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}"
            )
    else:
        checks.row_pair("x", x, "y", y)
    for name, sample in (("x", x), ("y", y)):
        if sample.shape[0] < least:
            raise ThawkitError(f"{name} must have at least {least} rows, got {sample.shape[0]}")
    return x.shape[0], y.shape[0]


def _unusable(sample: Tensor) -> int:
    return int((~sample.isfinite()).flatten(1).any(1).sum())


def _terms(
    x: Tensor, y: Tensor, kernel: str | GaussianTerms, bandwidths: Tensor | tuple[float, int] | str
) -> tuple[list[_Gaussians], Tensor]:
    """Return the kernel as a weighted sum of Gaussians of the rows of both samples, and its bandwidths."""
    z = torch.cat((lifted(x), lifted(y)))
    one = z.new_ones(1)
    if isinstance(kernel, GaussianTerms):
        return [_Gaussians(weight, rows, one, False) for weight, rows in kernel.terms(z)], z.new_empty(0)
    checks.one_of("kernel", kernel, ("rbf",))
    bandwidth, doubling = absolute_bandwidths(bandwidths, z)
    return [_Gaussians(1.0, z, 0.5 / bandwidth.square(), doubling)], bandwidth.detach()


def _sums(terms: list[_Gaussians], chosen: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of what :func:`thawkit.ops.pairwise.permutation_sums` says of each term."""
    results = [
        [
            term.weight * part
            for part in _pairwise.permutation_sums(
                term.rows, term.gamma, chosen, first, doubling=term.doubling
            )
        ]
        for term in terms
    ]
    within, from_chosen, sums = (torch.stack(parts).sum(0) for parts in zip(*results, strict=True))
    return within, from_chosen, sums


def _statistics(
    within: Tensor,
    from_chosen: Tensor,
    total: Tensor,
    n: int,
    m: int,
    own: Tensor | float,
    estimator: str,
) -> Tensor:
    """Squared MMD of each permutation; sums are without the diagonal, whose numbers are ``own``."""
    xx, xy, yy = within, from_chosen - within, total - 2 * from_chosen + within
    if estimator == "unbiased":
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    return xx / n**2 + yy / m**2 - 2 * xy / (n * m) + own * (1 / n + 1 / m)


def _pair_values(terms: list[_Gaussians], n: int, m: int) -> Tensor | None:
    """(n,) ``k(x_i, y_i)`` where the samples have one size."""
    if n != m:
        return None
    total = torch.zeros(n, dtype=torch.float64, device=terms[0].rows.device)
    for term in terms:
        d2 = (term.rows[:n] - term.rows[n:]).double().square().sum(1)
        total = total + term.weight * torch.exp(-d2[:, None] * term.gamma.double()).sum(1)
    return total


def _kernel_values(terms: list[_Gaussians]) -> Tensor:
    total = torch.zeros((), dtype=terms[0].rows.dtype, device=terms[0].rows.device)
    for term in terms:
        rows = term.rows - centre(term.rows)  # distances do not see it, rounding does
        d2 = squared_distances(rows, rows)
        for gamma in term.gamma.unbind():
            total = total + term.weight * torch.exp(-gamma * d2)
    return total
