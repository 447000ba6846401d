"""Rung 5: the bytes and transcendental functions of every CUDA kernel, counted where it runs on the CPU.

What a kernel must move stands here as a formula; what it touches, in sectors of 32 bytes, is counted. So are
the sectors that its requests ask for, which are more where neighbours are not side by side, and the conflicts
of shared memory. The predicted floor that follows is the time of a GPU that does nothing else: no GPU has
measured it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from thawkit.kernels.mmd_pairs import DIGIT, Layer, Pairs
from thawkit.kernels.panel import Panel, Rows
from thawkit.kernels.top_k_scores import LAST, Scores
from torch import Tensor

from thawkit.ops.focal import cuda as focal
from thawkit.ops.frozen import cuda as frozen
from thawkit.ops.frozen.max_pool import _geometry, _outputs, _Windows
from thawkit.ops.pairwise import cuda as pairwise
from thawkit.ops.pairwise import cuda_margin, cuda_mmd, cuda_top_k

from .cuda_checks import KERNELS
from .cuda_checks.focal import options
from .cuda_checks.softmax_focal import options as softmax_options
from .cuda_host import Host
from .ladder import record

SECTOR = 32
# an H100: bytes a second that a copy of memory was measured to move; the rest from its data sheet
BANDWIDTH = 3.0e12
TRANSCENDENTALS = 132 * 16 * 1.755e9
FLOPS = 66.9e12


class Case(NamedTuple):
    """A launch on so many elements and, by the formula, what it must read, write and compute."""

    elements: int
    bytes_read: float
    bytes_written: float
    transcendentals: float  # an element
    flops: float
    requested: float  # sectors that requests ask for, over the fewest that hold their bytes: at most
    run: Callable[[], object]

    @property
    def seconds(self) -> float:
        """The predicted floor of an element."""
        moved = (self.bytes_read + self.bytes_written) / self.elements / BANDWIDTH
        return max(moved, self.transcendentals / TRANSCENDENTALS, self.flops / FLOPS)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def mask_of(n: int) -> Tensor:
    return torch.randint(256, (n // 8,), dtype=torch.uint8)


def sigmoid_focal() -> Case:
    n = 16384
    x, t = numbers(n, dtype=torch.bfloat16), (torch.rand(n) < 0.1).bfloat16()
    loss, grad = torch.empty_like(x), torch.empty_like(x)
    run = lambda: focal._run(x, t, options(2.0), loss, grad, None, 1.0)
    return Case(n, 4 * n, 4 * n, 2, 45, 1.0, run)


def softmax_focal() -> Case:
    rows, classes = 64, 128
    x, t = numbers(rows, classes, dtype=torch.bfloat16), torch.randint(classes, (rows,))
    n = rows * classes
    run = lambda: focal.softmax_total(x, t, softmax_options(2.0), 1.0, None, True)
    # twice the exponentials of all logits; of each of a team of 32 five meetings, a target and a logarithm
    return Case(n, 2 * n + 8 * rows, 2 * n + 4 * rows, 2 + 224 / classes, 16, 1.02, run)


def pack() -> Case:
    n = 8192
    x, y, mask = numbers(n), torch.empty(n), mask_of(n)
    return Case(n, 4 * n, 4 * n + n / 8, 0, 3, 1.0, lambda: frozen.pack("relu", x, y, mask, 0.0, math.inf))


def masked() -> Case:
    n = 8192
    g, dx, mask = numbers(n), torch.empty(n), mask_of(n)
    return Case(n, 4 * n + n / 8, 4 * n, 0, 1, 1.0, lambda: frozen.masked("pass", g, mask, dx, 0.0, 0.0))


def channel_sum() -> Case:
    layout = 4, 16, 1024
    n = math.prod(layout)
    g, dx, mask, sums = numbers(n), torch.empty(n), mask_of(n), torch.empty(16)
    run = lambda: frozen.channel_sum("pass", g, mask, dx, layout, 0.0, 0.0, None, sums)
    return Case(n, 4 * n + n / 8, 4 * n + 64, 0, 6, 1.0, run)


def channel_affine() -> Case:
    layout = 2, 16, 256
    n = math.prod(layout)
    x, other, y, mask, scale = numbers(n), numbers(n), torch.empty(n), mask_of(n), numbers(2, 16)
    run = lambda: frozen.channel_affine(x, other, y, mask, layout, scale[0], scale[1], 0.0, math.inf)
    return Case(n, 8 * n + 128, 4 * n + n / 8, 0, 6, 1.0, run)


def channel_affine_backward() -> Case:
    layout = 4, 16, 1024
    n = math.prod(layout)
    (g, x), (dx, dother), sums, scale = numbers(2, n), torch.empty(2, n), torch.empty(2, 16), numbers(2, 16)
    mask = torch.full((n // 8,), 255, dtype=torch.uint8)  # where a bit is 0, nothing is read
    run = lambda: frozen.channel_affine_backward(g, x, mask, dx, dother, sums, layout, scale[0], scale[1])
    return Case(n, 8 * n + n / 8 + 128, 8 * n + 128, 0, 13, 1.0, run)


def windows() -> tuple[Tensor, Tensor, Tensor, tuple]:
    x, of = numbers(2, 8, 32, 32), _Windows([16, 16], [2, 2], [2, 2], [0, 0], [1, 1])
    return x, *_outputs(x, of), _geometry(x.shape, of, False)


def max_pool() -> Case:
    x, y, codes, geometry = windows()
    n = x.numel()
    run = lambda: frozen.max_pool(x, y, codes, geometry)
    return Case(n, 4 * n, n + n / 16, 0, 1, 7.2, run)


def max_pool_backward() -> Case:
    dx, g, codes, geometry = windows()
    codes.zero_()
    n = dx.numel()
    run = lambda: frozen.max_pool_backward(g, dx, codes, geometry)
    return Case(n, n + n / 16, 4 * n, 0, 1, 1.0, run)


def quantize() -> Case:
    n = 8192
    x, codes, levels = numbers(n), torch.empty(n // 2, dtype=torch.uint8), torch.empty(n // 32)
    return Case(n, 4 * n, n / 2 + n / 8, 0, 12, 1.75, lambda: frozen.quantize(x, codes, levels, 4))


def dequantize() -> Case:
    n = 8192
    codes, levels, y = torch.randint(256, (n // 2,), dtype=torch.uint8), numbers(n // 32), torch.empty(n)
    return Case(n, n / 2 + n / 8, 4 * n, 0, 2, 1.0, lambda: frozen.dequantize(codes, levels, None, y, 4))


def panel(rows: int, columns: int, first: int = 0) -> Panel:
    slopes = torch.empty(rows, columns, dtype=torch.bfloat16)
    return Panel(numbers(rows, columns), slopes, first, torch.tensor(1.0))


def softmax_panel() -> Case:
    rows, columns = 4, 2048
    of, loss, dscale = panel(rows, columns), torch.empty(rows), torch.empty(rows)
    n = rows * columns
    # twice the exponentials of all entries, and once more of each four where a larger one comes
    run = lambda: pairwise.softmax(of, loss, dscale=dscale)
    return Case(n, 4 * n + 4, 2 * n + 8 * rows, 2.25 + 512 / columns, 14, 1.0, run)


def column_sums_panel() -> Case:
    rows, columns = 128, 64
    maximum, total = torch.full((columns,), -math.inf), torch.zeros(columns)
    n = rows * columns
    # off the diagonal: a lane that left a row out would be counted a row late from there on
    run = lambda: pairwise.column_sums(panel(rows, columns, columns), maximum, total)
    return Case(n, 4 * n + 8 * columns + 4, 8 * columns, 1.25 + 16 / rows, 6, 1.0, run)


def clip_panel() -> Case:
    rows, columns = 4, 2048
    of_rows, of_columns, dscale = torch.zeros(2, rows), torch.zeros(2, columns), torch.empty(rows)
    n = rows * columns
    # of the columns' second sums only those of the rows' own columns are read
    run = lambda: pairwise.clip(panel(rows, columns), *of_rows, *of_columns, None, dscale)
    return Case(n, 4 * n + 4 * columns + 12 * rows + 4, 2 * n + 4 * rows, 2, 10, 1.0, run)


def sigmoid_panel() -> Case:
    rows, columns = 4, 2048
    (loss, dscale, dbias), bias = torch.empty(3, rows), torch.tensor(-10.0)
    n = rows * columns
    run = lambda: pairwise.sigmoid(panel(rows, columns), bias, 0, loss, dscale, dbias)
    return Case(n, 4 * n + 8, 2 * n + 12 * rows, 2, 22, 1.0, run)


LEFT = SECTOR // 4  # the first column's row, so that the columns' numbers begin where a sector does


def pairs(rows: int, columns: int, layer: Layer) -> Pairs:
    n, bandwidths = LEFT + columns, layer.count if layer.kind == "rbf" else 1
    first, second = torch.full((1, bandwidths), -0.1), torch.full((1, bandwidths), 0.1)
    sums = torch.zeros(rows, 1, bandwidths, dtype=torch.float64) if layer.learned else None
    value = torch.zeros(rows, dtype=torch.float64)
    return Pairs(
        (layer,),
        torch.full((1, n), 4.0),
        first,
        second,
        1e-6,
        torch.ones(n),
        None,
        None,
        rows,
        True,
        value,
        sums,
    )


def mmd_tile() -> Case:
    """Of five bandwidths, each twice the one before."""
    rows, columns = 4, 2048
    of, scores, slopes = pairs(rows, columns, Layer("doubling", 5, True)), *numbers(2, 1, rows, columns)
    n, slopes = rows * columns, slopes.bfloat16()
    run = lambda: cuda_mmd.tile(of, scores, slopes, 0, LEFT, 2.0)
    needed = 4 * n + 8 * (rows + columns) + 8 * rows + 8
    return Case(n, needed, 2 * n + 8 * rows, 1, 29, 1.0, run)


def mmd_rates() -> Case:
    """Of five bandwidths, beside what the tile itself costs."""
    rows, columns = 4, 2048
    of, scores = pairs(rows, columns, Layer("rbf", 5, False, True)), numbers(1, rows, columns)
    n = rows * columns
    run = lambda: cuda_mmd.rates(of, scores, 0, 0, LEFT, 2.0)
    return Case(n, 4 * n + 8 * (rows + columns) + 40 * rows + 20, 40 * rows, 5, 29, 1.0, run)


def mmd_values() -> Case:
    rows, columns = 4, 2048
    of, scores = pairs(rows, columns, Layer("doubling", 5)), numbers(rows, columns)
    n = rows * columns
    run = lambda: cuda_mmd.values(of, scores, 0, LEFT)
    return Case(n, 4 * n + 4 * (rows + columns) + 8, 4 * n, 1, 17, 1.0, run)


def mmd_digits() -> Case:
    rows, columns = 4, 2048
    scores, norms, n = numbers(rows, columns), torch.full((LEFT + columns,), 4.0), rows * columns
    found, counts = torch.zeros(1, dtype=torch.int32), torch.zeros(1 << DIGIT, dtype=torch.int64)
    run = lambda: cuda_mmd.count_digits(scores, norms, found, counts, 2 * DIGIT, 0, LEFT, 1e-6)
    # what atomics add to is not counted: the digits that there are, of each block
    return Case(n, 4 * n + 4 * (rows + columns) + 4, 0, 0, 8, 1.0, run)


def best_of_groups() -> Case:
    rows, columns, group = 4, 2048, 32
    of, keys = Scores(numbers(rows, columns), 0), torch.empty(rows, columns // group, dtype=torch.int64)
    n = rows * columns
    return Case(n, 4 * n, 8 * n / group, 0, 2, 1.0, lambda: cuda_top_k.best_of_groups(of, group, keys))


def keys_of_groups() -> Case:
    """The elements are the columns of the groups that are chosen."""
    rows, columns, group, chosen = 4, 2048, 32, 16
    of, keys = Scores(numbers(rows, columns), 0), torch.empty(rows, chosen * group, dtype=torch.int64)
    groups, n = (
        LAST - torch.stack([torch.randperm(columns // group)[:chosen] for _ in range(rows)]),
        keys.numel(),
    )
    run = lambda: cuda_top_k.keys_of_groups(of, group, groups, keys)
    return Case(n, 4 * n + 8 * groups.numel(), 8 * n, 0, 2, 1.0, run)


POSITIVES = 8


def rows_of_a_class(rows: int, columns: int) -> Rows:
    """Rows, none of them a column, whose class is the first columns."""
    none, number = torch.zeros(rows, dtype=torch.int32), torch.arange(columns, dtype=torch.int32)
    of_class = none, none + POSITIVES
    return Rows(torch.ones(rows), torch.ones(columns), *of_class, number, number.clone(), False, False)


def distances_panel() -> Case:
    rows, columns = 4, 2048
    of, out = panel(rows, columns), torch.empty(rows, columns)
    n = rows * columns
    run = lambda: cuda_margin.distances(of, rows_of_a_class(rows, columns), out)
    return Case(n, 4 * n + 4 * columns + 4 * rows, 4 * n, 0, 8, 1.0, run)


def triplets(mine: Callable[..., None], rows: int, columns: int) -> Callable[[], object]:
    """A launch in which every triplet costs something."""
    w, distances = torch.zeros(rows, columns), torch.rand(rows, columns)
    of = Panel(distances, w, 0, torch.tensor(1.0))
    (loss, total), active = torch.empty(2, rows), torch.empty(rows, dtype=torch.int64)
    margin = torch.tensor(2.0)
    return lambda: mine(of, rows_of_a_class(rows, columns), distances, margin, loss, active, total)


def all_triplets_panel() -> Case:
    rows, columns = 4, 2048
    n = rows * columns
    run = triplets(cuda_margin.all_triplets, rows, columns)
    # a negative is compared with each positive, and counted, once for either
    return Case(n, 4 * n + 8 * rows + 4, 4 * n + 16 * rows, 0, 4 * POSITIVES + 4, 1.0, run)


def semihard_triplets_panel() -> Case:
    rows, columns = 4, 2048
    n = rows * columns
    run = triplets(cuda_margin.semihard_triplets, rows, columns)
    # and the columns' numbers; atomic additions, one a positive, are not counted
    read = 4 * n + 4 * columns + (4 * POSITIVES + 8) * rows
    return Case(n, read, (4 * POSITIVES + 16) * rows, 0, 2 * POSITIVES + 6, 1.0, run)


def hardest_triplet_panel() -> Case:
    rows, columns = 4, 2048
    of, (loss, *_), two = panel(rows, columns), torch.empty(1, rows), torch.empty(rows, 2)
    chosen, active = torch.empty(rows, 2, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
    n = rows * columns
    known, margin = rows_of_a_class(rows, columns), torch.tensor(2.0)
    run = lambda: cuda_margin.hardest_triplet(of, known, margin, loss, active, chosen, two)
    return Case(n, 4 * n + 8 * columns + 16 * rows + 4, 36 * rows, 0, 14, 1.0, run)


def contrastive_panel() -> Case:
    rows, columns = 4, 2048
    of, of_row = (
        Panel(numbers(rows, columns), torch.empty(rows, columns), 0, torch.tensor(1.0)),
        torch.empty(4, rows),
    )
    n = rows * columns
    known, margin = rows_of_a_class(rows, columns), torch.tensor(0.2)
    run = lambda: cuda_margin.contrastive_pairs(of, known, margin, margin, None, *of_row)
    return Case(n, 4 * n + 4 * columns + 12 * rows + 4, 4 * n + 16 * rows, 0, 20, 1.0, run)


CASES = {
    function.__name__: function
    for function in (
        *(
            sigmoid_focal,
            softmax_focal,
            pack,
            masked,
            channel_sum,
            channel_affine,
            channel_affine_backward,
            max_pool,
        ),
        *(max_pool_backward, quantize, dequantize),
        *(softmax_panel, column_sums_panel, clip_panel, sigmoid_panel),
        *(mmd_tile, mmd_rates, mmd_values, mmd_digits, best_of_groups, keys_of_groups),
        *(distances_panel, all_triplets_panel, semihard_triplets_panel, hardest_triplet_panel),
        contrastive_panel,
    )
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_traffic_is_what_the_formula_says(cuda_host: Host, kernel: str) -> None:
    torch.manual_seed(0)
    case = CASES[kernel]()
    with cuda_host.running(order="numbered", count=True):
        case.run()
    counted = cuda_host.counters
    touched = counted.distinct_sectors_read * SECTOR, counted.distinct_sectors_written * SECTOR
    for got, needed in zip(touched, (case.bytes_read, case.bytes_written), strict=True):
        assert needed <= got <= 1.02 * needed + 8 * SECTOR  # parts of sectors at the ends of tensors
    asked = counted.load_sectors + counted.store_sectors
    fewest = counted.ideal_load_sectors + counted.ideal_store_sectors
    assert asked <= 1.02 * case.requested * fewest
    assert counted.shared_wavefronts == counted.ideal_shared_wavefronts  # no bank is asked twice
    assert counted.transcendentals <= (case.transcendentals + 0.05) * case.elements
    moved = (case.bytes_read + case.bytes_written) / case.elements
    record(
        f"cuda/{kernel}",
        5,
        bytes=round(moved, 3),
        flops=case.flops,
        transcendentals=case.transcendentals,
        floor_ms=round(case.seconds * 1e12, 2),
    )
