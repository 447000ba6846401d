"""MMD on a GPU: tiles of cuBLAS products over the upper triangle of pairs, one epilogue kernel on each.

The epilogues are Triton's or CUDA C++'s, which take the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.kernels.mmd_pairs import DIGIT, Layer, Pairs
from thawkit.ops._library import empty
from thawkit.ops.pairwise.common import full_precision
from thawkit.ops.pairwise.gpu_panels import add_product, panel_bytes, product
from thawkit.ops.pairwise.reference.distances import centre


class Epilogues(NamedTuple):
    """What runs on tiles; ``kernels/mmd.py`` says what each takes."""

    programs: Callable[[int, int, int], int]
    tile: Callable[..., None]
    values: Callable[..., None]
    count_digits: Callable[..., None]


_LEAST_MEAN = 2.6e-29  # that a mean square in units counts as, of coinciding points: rates stay finite
_SMALLEST_RATE, _LARGEST_RATE = 4 * torch.finfo(torch.float32).tiny, 2e37
# Squared distances of no more than that many norms are rounding of 0: of float32 products, and of what _Rows
# leaves out of the product of two rows in two parts of 8 bits each.
_ROUNDING = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.bfloat16: 2.0**-16}


class _Rows:
    """The rows of both samples, one after the other, as products want them, and what becomes their gradient.

    For kernels of distances they are about a point amid them, and of a size whose squares float32 holds.
    float32 rows are multiplied as they are. Those of half precision become sums of two bfloat16 numbers, so
    that what is put about another point keeps its digits: three products on the tensor cores, of both high
    parts and of each with a low part, leave out no more than 2^-16 of the norms. Slopes take the high part.

    A column of ones beside the rows has the products with slopes find the sums of the slopes, too.
    """

    def __init__(self, x: Tensor, y: Tensor, centred: bool, need: bool) -> None:
        self.first, self.depth = x.shape
        z = torch.cat((x, y)).float()
        self.unit = _unit(z) if centred else z.new_ones(())
        if centred:
            z.mul_(self.unit).sub_(centre(z))  # distances do not see it, rounding does
        self.norms = z.square().sum(1)
        self.sum = z.sum(0, dtype=torch.float64) if centred else None
        self.dtype = torch.float32 if x.dtype == torch.float32 else torch.bfloat16
        parts = [z]
        if self.dtype != torch.float32:
            high = z.bfloat16()
            parts = [high, z.sub_(high).bfloat16(), high]
        width = len(parts) * self.depth
        padded = -(-(width + 1) // 8) * 8  # every row begins where wide loads may
        self.stored = torch.empty(len(z), padded, dtype=self.dtype, device=z.device)
        torch.cat(parts, 1, out=self.stored[:, :width])
        self.stored[:, width] = 1
        self.columns = self.stored[:, :width]
        self.with_ones = self.stored[:, width - self.depth : width + 1]
        self.gradient: Tensor | None = None
        if need:
            self.gradient = z.new_zeros(len(z), -(-(self.depth + 1) // 4) * 4)[:, : self.depth + 1]

    def products(self, rows: slice, columns: slice) -> Tensor:
        """Return the float32 inner products of some rows with others."""
        left = self.columns[rows]
        if self.dtype != torch.float32:
            high, low, _ = left.split(self.depth, 1)
            left = torch.cat((high, high, low), 1)
        return product(left, self.columns[columns].t())

    def add(self, slopes: Tensor, rows: slice, columns: slice, mirrored: bool) -> None:
        """Add slopes times rows to the gradient of some rows and, where mirrored, to that of the others."""
        if self.gradient is None:
            return
        add_product(self.gradient[rows], slopes, self.with_ones[columns])
        if mirrored:
            add_product(self.gradient[columns], slopes.t(), self.with_ones[rows])


def _unit(z: Tensor) -> Tensor:
    """Return a power of 2: 1 unless squares of the rows would leave float32."""
    if z.numel() == 0:
        return z.new_ones(())
    largest = z.abs().masked_fill_(~z.isfinite(), 0).amax()
    fits = (largest == 0) | ((largest >= 1e-9) & (largest <= 1e15))
    return largest.where(~fits, 1.0).log2().floor().clamp(-126, 126).neg().exp2()


class _Layer(NamedTuple):
    """What one layer sees, and the numbers of its kernel."""

    rows: _Rows
    kind: str
    number: int  # of bandwidths, of a product the degree
    rates: Tensor
    first: Tensor
    second: Tensor
    learned: bool

    def found(self, rows: slice, unit: Tensor) -> Tensor:
        """Return the gradient by some rows, ``sum_j W_ij z_j`` and ``sum_j W_ij`` having been added up.

        It is ``-4 (sum_j W_ij z_i - sum_j W_ij z_j)``, or of inner products ``2 sum_j W_ij z_j``; ``unit`` is
        what the value is to be divided by.
        """
        assert self.rows.gradient is not None
        sums, factor = self.rows.gradient[rows], (self.rows.unit / unit).float()
        if self.kind == "product":
            return sums[:, :-1] * (2 * factor)
        return (self.rows.with_ones[rows, :-1] * sums[:, -1:]).sub_(sums[:, :-1]).mul_(-4 * factor)

    def by_rates(self, sums: Tensor) -> Tensor:
        """Return the derivatives by the rates from the sums of all programs."""
        unit = self.rows.unit.double()
        if self.kind == "laplace":
            return sums * (-0.5 / (self.rates.double().sqrt() * unit))
        return sums * ((-1.0 if self.kind == "imq" else -0.5) / unit.square())


def _layer(
    x: Tensor, y: Tensor, rates: Tensor, kernel: str, numbers: list[float], need: bool, need_rates: bool
) -> _Layer:
    relative, doubling, degree, offset = numbers
    of_distances = kernel not in ("linear", "poly")
    rows = _Rows(x, y, of_distances, need)
    if not of_distances:
        scale = 1 / max(rows.depth, 1) if kernel == "poly" else 1.0
        first, second = (rows.norms.new_full((1,), number) for number in (scale, offset))
        return _Layer(rows, "product", int(degree), rates, first, second, False)
    if kernel == "energy":
        nothing = rows.norms.new_zeros(1)
        return _Layer(rows, kernel, 1, rates, nothing, nothing, False)
    over = rows.unit.double().square()
    if relative:  # the mean of |z_i - z_j|^2 over i != j is 2 / (N - 1) sum_i |z_i - mean z|^2
        assert rows.sum is not None
        count = len(rows.norms)
        spread = rows.norms.sum(dtype=torch.float64) - rows.sum.square().sum() / count
        over = (spread * (2 / max(count - 1, 1))).clamp_min(_LEAST_MEAN)
    kind = "doubling" if kernel == "rbf" and doubling else kernel
    return _Layer(rows, kind, rates.numel(), rates, *_numbers(kind, rates.double() / over), need_rates)


def _numbers(kind: str, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``first`` and ``second`` of csrc/cpu/mmd_kernels.h, of rates in units."""
    # finite and not 0 even where float32 has no such rate: an infinite distance times it stays infinite
    rates = rates.clamp(_SMALLEST_RATE, _LARGEST_RATE).float()
    if kind == "imq":
        return rates, rates
    if kind == "laplace":
        roots = rates.sqrt()
        return roots * -math.log2(math.e), roots * 0.5
    return rates * (-0.5 * math.log2(math.e)), rates * 0.5


def _sides(count: int, layers: int) -> tuple[int, int]:
    """Return rows and columns of a tile, of whose products all layers' make a panel."""
    entries = max(1, panel_bytes() // (4 * layers))
    height = 1 << (math.isqrt(max(1, entries // 2)).bit_length() - 1)
    return max(1, min(height, count)), max(1, min(max(height, entries // height), count))


def _tiles(count: int, layers: int) -> Iterator[tuple[slice, slice, bool]]:
    """Yield rows and columns that cover the pairs, and whether they stand for the transposed ones as well."""
    height, width = _sides(count, layers)
    for top in range(0, count, height):
        bottom = min(top + height, count)
        yield slice(top, bottom), slice(top, bottom), False
        for left in range(bottom, count, width):
            yield slice(top, bottom), slice(left, min(left + width, count)), True


def _stacked(numbers: list[Tensor]) -> Tensor:
    """Return numbers of all layers, (layers, most of them)."""
    return torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True)


def _pairs(
    epilogues: Epilogues,
    layers: list[_Layer],
    weights: Tensor,
    same: Tensor | None,
    labels: Tensor | None,
    diagonal: bool,
) -> Pairs:
    rows = layers[0].rows
    programs = epilogues.programs(*_sides(len(rows.norms), len(layers)), len(layers))
    first = _stacked([layer.first for layer in layers])
    value = torch.zeros(programs, dtype=torch.float64, device=first.device)
    learned = any(layer.learned for layer in layers)
    return Pairs(
        layers=tuple(
            Layer(layer.kind, layer.number, layer.rows.gradient is not None, layer.learned)
            for layer in layers
        ),
        norms=torch.stack([layer.rows.norms for layer in layers]),
        first_numbers=first,
        second_numbers=_stacked([layer.second for layer in layers]),
        rounding=_ROUNDING[rows.dtype],
        weights=weights,
        same=same,
        labels=labels,
        first=rows.first,
        diagonal=diagonal,
        value=value,
        rate_sums=value.new_zeros(programs, *first.shape) if learned else None,
    )


def mmd(
    epilogues: Epilogues,
    samples: list[Tensor],
    rates: list[Tensor],
    weights: Tensor | None,
    same: Tensor | None,
    labels: Tensor | None,
    kernels: list[str],
    numbers: list[float],
    unbiased: bool,
    need_samples: list[bool],
    need_rates: list[bool],
) -> list[Tensor]:
    """Squared MMD (float32 scalar), its gradients by both samples of each layer, and by each one's rates."""
    with full_precision(samples[0]):
        layers = [
            _layer(x, y, rate, kernel, numbers[4 * i : 4 * i + 4], need, need_rate)
            for i, (x, y, rate, kernel, need, need_rate) in enumerate(
                zip(samples[::2], samples[1::2], rates, kernels, need_samples, need_rates, strict=True)
            )
        ]
        rows, n, m = layers[0].rows, samples[0].shape[0], samples[1].shape[0]
        if weights is None:
            weights = _of_samples(1 / n, -1 / m, rows)
            same = _of_samples(n / (n - 1), m / (m - 1), rows) if unbiased else None
        pairs = _pairs(
            epilogues,
            layers,
            weights.float().contiguous(),
            None if same is None else same.float().contiguous(),
            None if labels is None else labels.to(torch.int32).contiguous(),
            not unbiased,
        )
        _walk(epilogues, layers, pairs)
        unit = rows.unit.new_ones((), dtype=torch.float64)
        for layer in layers:
            if layer.kind == "energy":  # -d is not of the rows that were given but of those times the unit
                unit = unit * layer.rows.unit
        gradients, of_rates = [], []
        for i, layer in enumerate(layers):
            for sample, of_sample in zip(samples[2 * i : 2 * i + 2], (slice(n), slice(n, None)), strict=True):
                gradients.append(
                    layer.found(of_sample, unit).to(sample.dtype) if need_samples[i] else empty(sample)
                )
            sums = pairs.rate_sums
            if layer.learned and sums is not None:
                of_rates.append(layer.by_rates(sums[:, i, : layer.number].sum(0)) / unit)
            else:
                of_rates.append(rates[i].new_zeros(rates[i].shape if need_rates[i] else 0).double())
        return [(pairs.value.sum() / unit).float(), *gradients, *of_rates]


def _walk(epilogues: Epilogues, layers: list[_Layer], pairs: Pairs) -> None:
    """Add up what all pairs are worth, and the gradients that are wanted."""
    dtype = layers[0].rows.dtype
    sloped = any(layer.rows.gradient is not None for layer in layers)
    for here, others, mirrored in _tiles(len(layers[0].rows.norms), len(layers)):
        found = [layer.rows.products(here, others) for layer in layers]
        scores = torch.stack(found) if len(found) > 1 else found[0][None]
        slopes = None
        if sloped:
            slopes = scores if dtype == torch.float32 else torch.empty_like(scores, dtype=dtype)
        epilogues.tile(pairs, scores, slopes, here.start, others.start, 1.0 + mirrored)
        if slopes is not None:
            for layer, of_layer in zip(layers, slopes.unbind(), strict=True):
                layer.rows.add(of_layer, here, others, mirrored)


def _of_samples(of_x: float, of_y: float, rows: _Rows) -> Tensor:
    """Return a number for each row of the first sample and another for each of the second."""
    numbers = torch.full_like(rows.norms, of_y)
    numbers[: rows.first] = of_x
    return numbers


def permutation_sums(
    epilogues: Epilogues, z: Tensor, gamma: Tensor, chosen: Tensor, first: int, doubling: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the kernel matrix within and from the chosen rows, and of its rows (float64).

    Kernel values take the place of their products, and all permutations at once are products with them.
    """
    count, permutations = chosen.shape
    rows = _Rows(z[:first].float(), z[first:].float(), True, False)
    kind = "doubling" if doubling else "rbf"
    rates = 2 * gamma.double() / rows.unit.double().square()
    layer = _Layer(rows, kind, gamma.numel(), gamma, *_numbers(kind, rates), False)
    pairs = _pairs(epilogues, [layer], rows.norms, None, None, False)
    samples = torch.stack([_of_samples(1.0, 0.0, rows), _of_samples(0.0, 1.0, rows)], 1)
    within = rows.norms.new_zeros(permutations, dtype=torch.float64)
    from_chosen, sums = torch.zeros_like(within), within.new_zeros(count, 2)
    with full_precision(z):
        for here, others, mirrored in _tiles(count, 1):
            values = rows.products(here, others)
            epilogues.values(pairs, values, here.start, others.start)
            sums[here] += values @ samples[others]
            if mirrored:
                sums[others] += values.t() @ samples[here]
            for some in _parts(permutations, 4 * values.shape[1]):
                products = values @ chosen[others, some].float()
                products *= chosen[here, some]
                within[some] += products.sum(0, dtype=torch.float64) * (1 + mirrored)
    totals = sums.sum(1)
    for some in _parts(permutations, 8 * count):
        from_chosen[some] = totals @ chosen[:, some].double()
    return within, from_chosen, sums


def _parts(count: int, bytes_each: int) -> Iterator[slice]:
    """Yield slices, of as many as a panel holds."""
    most = max(1, panel_bytes() // max(bytes_each, 1))
    for first in range(0, count, most):
        yield slice(first, first + most)


def median_squared_distance(epilogues: Epilogues, x: Tensor, y: Tensor) -> Tensor:
    """Median of the squared distances of all pairs of rows (float64 scalar), found digit by digit."""
    count = x.shape[0] + y.shape[0]
    if count < 2:
        return x.new_zeros((), dtype=torch.float64)
    rows = _Rows(x.float(), y.float(), True, False)
    left = torch.full((1,), (count * (count - 1) // 2 - 1) // 2, dtype=torch.int64, device=x.device)
    found = torch.zeros(1, dtype=torch.int32, device=x.device)
    with full_precision(x):
        for shift in range(2 * DIGIT, -1, -DIGIT):
            counts = left.new_zeros(1 << DIGIT)
            for here, others, _ in _tiles(count, 1):
                scores = rows.products(here, others)
                epilogues.count_digits(
                    scores, rows.norms, found, counts, shift, here.start, others.start, _ROUNDING[rows.dtype]
                )
            upto = counts.cumsum(0)
            digit = torch.searchsorted(upto, left, right=True)
            left = left - (upto - counts).gather(0, digit)
            found = (found << DIGIT) + digit.to(torch.int32)
    median = found.view(torch.float32)[0].double() / rows.unit.double().square()
    return median.where(rows.norms.isfinite().all(), torch.nan)
