"""Are two samples from one distribution? The permutation test of MMD, and what makes a kernel powerful."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses.functional.mmd import Bandwidths, sample_of
from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.panels import in_panels
from thawkit.ops.pairwise.reference import power_criterion
from thawkit.ops.pairwise.reference.distances import centre
from thawkit.ops.pairwise.reference.kernels import OF_DISTANCES, Kernel, matrix, of_pairs
from thawkit.ops.pairwise.reference.mmd import absolute, in_units

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
        bandwidth: (B,) the kernels' bandwidths s_b; empty where the kernel has none or brings its own.
    """

    statistic: float
    p_value: float
    null_sample: Tensor
    power_criterion: float
    bandwidth: Tensor


class _Term(NamedTuple):
    """A weighted kernel of rows (N + M, D) of both samples, with absolute rates."""

    weight: Tensor | float
    rows: Tensor
    kernel: Kernel
    rates: Tensor | None


@torch.no_grad()
def mmd_test(
    x: Tensor,
    y: Tensor,
    permutations: int = 1000,
    *,
    kernel: str | GaussianTerms = "rbf",
    bandwidths: Bandwidths = "median",
    estimator: str = "unbiased",
    degree: int = 3,
    offset: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> MMDTestResult:
    """Permutation test of whether two samples come from one distribution (Gretton et al. 2012, sec. 5).

    Under that hypothesis rows could as well have been dealt out to the samples in any other way, so the
    squared MMD ranks like that of random re-deals, and ``P(p_value <= a) <= a`` for every a, whatever the
    sizes of the samples. All permutations are worked off in one pass over the kernel matrix, which is never
    stored: with K's rows summed, ``w^T K w`` of each permutation's 0/1 vector w gives all three of its sums.
    In O((N + M)^2 (D + P)) time and O((N + M) (D + P)) memory.

    Only the upper triangle is computed. Gaussian kernels, the deep ones included, run on a compiled kernel in
    float32 (float64 inputs in float64); the others are computed in float64 whatever the inputs, some rows of
    the matrix at a time, which take about 64 MiB.

    The p-value is that of one look. Whoever tests again and again until it is small will see it small.

    Args:
        x: (N, D) sample.
        y: (M, D) sample; M need not be N.
        permutations: P. The smallest p-value is ``1 / (1 + P)``.
        kernel: ``rbf``, ``laplace``, ``imq``, ``energy``, ``linear`` or ``poly``, as for
            :func:`thawkit.losses.functional.mmd`; or a :class:`~thawkit.losses.DeepKernel`, whose inputs can
            have any shape (N, ...). It must not have seen the samples that are tested.
        bandwidths: of rbf, laplace and imq, as for :func:`thawkit.losses.functional.mmd`; both samples
            determine them together, so that the test stays exact.
        estimator: ``unbiased`` (U-statistic, at least 2 rows each) or ``biased``.
        degree: of the poly kernel.
        offset: of the poly kernel.
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
        terms, bandwidth = _terms(x, y, kernel, bandwidths, degree, offset)
        exact = [_placed(term._replace(rows=term.rows.double())) for term in terms]
        terms = [t if t.kernel.name == "rbf" else e for t, e in zip(terms, exact, strict=True)]
        own, pairs = _own(exact), _pair_values(exact, n) if n == m else None
        del exact
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    checks.integer("seed", seed)

    # The smaller sample is the one that is dealt: its sums are added up themselves, and those that are left
    # of the whole matrix are divided by the square of the larger size, so that no digits are lost.
    few, many = min(n, m), max(n, m)
    statistics, sums = [], None
    together = max(_LEAST_TOGETHER, _BYTES // (n + m))
    for start in range(0, permutations + 1, together):
        count = min(together, permutations + 1 - start)
        chosen = _pairwise.subsets(n + m, few, count, seed % 2**64, start)
        if start == 0:  # the first one is the samples as they are
            rows = torch.arange(n + m, device="cpu")
            chosen[:, 0] = rows < n if few == n else rows >= n
        within, from_chosen, row_sums = _sums(terms, chosen.to(x.device), n)
        total = row_sums.sum()
        if estimator == "biased":
            of_chosen = _over_chosen(own, chosen.to(x.device))
            statistics.append(_biased(within, from_chosen, total, of_chosen, own.sum(), few, many))
        else:
            statistics.append(_unbiased(within, from_chosen, total, few, many))
        sums = row_sums if sums is None else sums
    observed, null = torch.cat(statistics).split((1, permutations))
    assert sums is not None
    # Re-deals with the same statistic, such as the two samples swapped, are not to differ by rounding. It is
    # that of the means of the matrix's blocks, and evens out between the rows of the smaller sample.
    means = sums.abs() / torch.tensor([n, m], dtype=sums.dtype, device=sums.device)
    means = means[:n].sum() / n + means[n:].sum() / m
    rounding = torch.finfo(terms[0].rows.dtype).eps * means / few**0.5
    reached = int((null >= observed - 16 * rounding).sum())
    return MMDTestResult(
        observed.item(),
        (1 + reached) / (1 + permutations),
        null,
        float("nan") if min(n, m) < 2 else power_criterion(sums, n, own, pairs).item(),
        bandwidth,
    )


_BYTES = 1 << 26  # of the permutations at a time
_LEAST_TOGETHER = 64  # permutations


def mmd_power(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str | GaussianTerms = "rbf",
    bandwidths: Bandwidths = "median",
    degree: int = 3,
    offset: float = 1.0,
) -> Tensor:
    """Power criterion ``MMD^2 / sigma_H1`` of a kernel on two samples (Liu et al. 2020, eqs. 3 and 5).

    The larger it is, the fewer rows a test needs; kernels are trained by its gradient, on data that are not
    tested afterwards. For samples of one size it is the paper's, of the pairs (x_i, y_i), with lambda = 1e-8;
    for others see :func:`thawkit.ops.pairwise.reference.power_criterion`. In plain PyTorch and in float64
    whatever the inputs, some rows of the kernel matrix at a time; where there are more than about 1000 rows,
    these are computed anew in the backward pass, so that memory is O((N + M) D) and about 64 MiB.

    Args:
        x: (N, D) sample, at least 2 rows.
        y: (M, D) sample, at least 2 rows.
        kernel: as for :func:`mmd_test`; gradients go through a deep kernel to its parameters.
        bandwidths: as for :func:`mmd_test`; a tensor gets a gradient, the others are taken without one.
        degree: of the poly kernel.
        offset: of the poly kernel.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: as :func:`mmd_test`.
    """
    n, m = _check_samples(x, y, 2, isinstance(kernel, GaussianTerms))
    with full_precision(x):
        terms, _ = _terms(x, y, kernel, bandwidths, degree, offset)
        terms = [_placed(term._replace(rows=term.rows.double())) for term in terms]
        column = torch.arange(n + m, device=x.device)

        def sums(top: int, bottom: int) -> Tensor:
            values = _weighted(terms, lambda t: matrix(t.kernel, t.rates, t.rows[top:bottom], t.rows))
            values = values.masked_fill(column == column[top:bottom, None], 0)
            return torch.stack((values[:, :n].sum(1), values[:, n:].sum(1)), 1)

        pairs = _pair_values(terms, n) if n == m else None
        power = power_criterion(in_panels(sums, n + m, n + m), n, _own(terms), pairs)
        return power.to(lifted(x).dtype)


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
    x: Tensor,
    y: Tensor,
    kernel: str | GaussianTerms,
    bandwidths: Bandwidths,
    degree: int,
    offset: float,
) -> tuple[list[_Term], Tensor]:
    """Return the kernel as a weighted sum of kernels of the rows of both samples, and its bandwidths."""
    z = torch.cat((lifted(x), lifted(y)))
    if isinstance(kernel, GaussianTerms):
        two = z.new_full((1,), 2.0)
        return [_Term(weight, rows, Kernel("rbf"), two) for weight, rows in kernel.terms(z)], z.new_empty(0)
    layer = sample_of(x, y, kernel, bandwidths, degree, offset, unasked="median")
    rates = absolute(layer.kernel, layer.rates, lifted(x), lifted(y))
    if rates is None:
        return [_Term(1.0, z, layer.kernel, None)], z.new_empty(0)
    return [_Term(1.0, z, layer.kernel, rates)], rates.detach().rsqrt().to(z.dtype)


def _placed(term: _Term) -> _Term:
    """Rows near the origin, where the squared MMD does not see a shift, and in units near the bandwidths."""
    rows, rates = term.rows, term.rates
    if term.kernel.name in OF_DISTANCES:
        rows = rows - centre(rows)
    elif term.kernel.name == "linear":
        rows = rows - rows.detach().mean(0)
    if rates is not None:
        rates, rows, _, _ = in_units(term.kernel, rates, rows, rows[:0])
    return term._replace(rows=rows, rates=rates)


def _weighted(terms: list[_Term], values: Callable[[_Term], Tensor]) -> Tensor:
    return torch.stack([term.weight * values(term) for term in terms]).sum(0)


def _own(terms: list[_Term]) -> Tensor:
    """(N + M,) ``k(z_i, z_i)``."""
    return _weighted(terms, lambda t: of_pairs(t.kernel, t.rates, t.rows, t.rows))


def _pair_values(terms: list[_Term], n: int) -> Tensor:
    """(n,) ``k(x_i, y_i)`` of samples of one size."""
    return _weighted(terms, lambda t: of_pairs(t.kernel, t.rates, t.rows[:n], t.rows[n:]))


def _sums(terms: list[_Term], chosen: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of what :func:`thawkit.ops.pairwise.permutation_sums` says of each term."""
    results = []
    for term in terms:
        if term.kernel.name == "rbf":
            assert term.rates is not None
            found = _pairwise.permutation_sums(
                term.rows, term.rates / 2, chosen, first, doubling=term.kernel.doubling
            )
        else:
            found = _pairwise.permutation_sums_of_kernel(term.rows, term.kernel, term.rates, chosen, first)
        results.append([term.weight * part for part in found])
    within, from_chosen, sums = (torch.stack(parts).sum(0) for parts in zip(*results, strict=True))
    return within, from_chosen, sums


def _unbiased(within: Tensor, from_chosen: Tensor, total: Tensor, n: int, m: int) -> Tensor:
    """U-statistic of each permutation from the sums without the diagonal."""
    xx, xy, yy = within, from_chosen - within, total - 2 * from_chosen + within
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _biased(
    within: Tensor,
    from_chosen: Tensor,
    total: Tensor,
    own_of_chosen: Tensor,
    own_total: Tensor,
    n: int,
    m: int,
) -> Tensor:
    """V-statistic, for which the diagonal's part comes back."""
    xx, xy, yy = within, from_chosen - within, total - 2 * from_chosen + within
    xx, yy = xx + own_of_chosen, yy + own_total - own_of_chosen
    return xx / n**2 + yy / m**2 - 2 * xy / (n * m)


def _over_chosen(own: Tensor, chosen: Tensor) -> Tensor:
    """(P,) float64 sums of ``own`` over the rows that each permutation chooses."""
    total = torch.zeros(chosen.shape[1], dtype=torch.float64, device=own.device)
    height = max(1, _BYTES // 8 // chosen.shape[1])
    for part, of_part in zip(own.double().split(height), chosen.split(height), strict=True):
        total += part @ of_part.double()
    return total
