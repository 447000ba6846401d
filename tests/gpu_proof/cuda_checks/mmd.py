"""csrc/cuda/mmd.cu: what pairs of rows are worth, slopes, derivatives by the rates, kernels and digits."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from thawkit.kernels.mmd_pairs import DIGIT, Layer, Pairs
from torch import Tensor

from tests.gpu_proof.families.mmd import _ROUNDING, FAMILY, SUMMED, _tile
from tests.gpu_proof.triton_checks.family import faults
from thawkit.ops.pairwise import cuda_mmd

from .panels import FAR, NOTHING, far
from .registry import DTYPES, Run, check, close, poisoned, same

# what lies between two rows, and before the first
LAYOUTS = [(0, 0), (2, 0), (3, 0), (0, 1)]
COLUMNS = 1030  # of two steps; the last four neighbours are two


def _dtype_of(problem: str) -> torch.dtype:
    return next((d for d in DTYPES if problem.endswith(f" {str(d)[6:]}")), torch.float32)


def problems_of_triton(run: Run, problem: str, dtype: torch.dtype) -> None:
    with run(seed=len(problem)):
        compared = FAMILY.problems[problem](cuda_mmd)
    assert not faults(compared), faults(compared)


class Placed:
    """The epilogues on copies in memory of another layout, around whose rows nothing may be written."""

    programs = staticmethod(cuda_mmd.programs)

    def __init__(self, gap: int = 0, before: int = 0, shifted: str = "", late: int = 0) -> None:
        self.gap, self.before, self.shifted, self.late = gap, before, shifted, late
        self.placed: list[tuple[Tensor, Tensor, Tensor]] = []

    def place(self, x: Tensor, late: int = 0) -> Tensor:
        before = self.before + late
        memory = poisoned(before + x[..., 0].numel() * (x.shape[-1] + self.gap), dtype=x.dtype)
        inside = memory[before:].view(*x.shape[:-1], -1)[..., : x.shape[-1]].copy_(x)
        self.placed.append((x, inside, memory))
        return inside

    def back(self) -> None:
        for x, inside, memory in self.placed:
            x.copy_(inside)
            inside.fill_(torch.nan)
            assert memory.isnan().all()

    def tile(self, pairs: Pairs, scores: Tensor, slopes: Tensor | None, *rest: Any) -> None:
        if self.shifted:
            x = getattr(pairs, self.shifted)
            moved = torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)
            pairs = dataclasses.replace(pairs, **{self.shifted: moved})
        given = self.place(scores)
        written = given if slopes is scores else None if slopes is None else self.place(slopes, self.late)
        cuda_mmd.tile(pairs, given, written, *rest)
        self.back()

    def values(self, pairs: Pairs, scores: Tensor, *rest: Any) -> None:
        cuda_mmd.values(pairs, self.place(scores), *rest)
        self.back()


def _solve(run: Run, problem: Any, placed: Placed) -> None:
    with run(seed=placed.gap):
        compared = problem(placed)
    assert not faults(compared), faults(compared)


@check("mmd_tile", layout=LAYOUTS, columns=[1024, COLUMNS], layers=[1, 2], dtype=DTYPES)
def tiles_of_any_layout(run: Run, layout: tuple, columns: int, layers: int, dtype: torch.dtype) -> None:
    names = ("doubling", "rbf")[:layers]
    problem = partial(_tile, rows=3, columns=columns, layers=names, dtype=dtype, top=2, left=4, times=2.0)
    _solve(run, problem, Placed(*layout))


@check("mmd_tile")
def own_pairs_that_do_not_count_have_no_slopes(run: Run) -> None:
    _solve(run, partial(_tile, rows=9, columns=9, layers=("poly",), diagonal=False, same=True), Placed())


@check("mmd_tile", dtype=DTYPES[1:])
def slopes_that_no_vector_begins(run: Run, dtype: torch.dtype) -> None:
    _solve(run, partial(_tile, rows=2, columns=1024, layers=("rbf",), dtype=dtype), Placed(late=1))


@check("mmd_rates", layout=LAYOUTS, name=["rbf", "laplace", "imq", "doubling"])
def rates_of_any_layout(run: Run, layout: tuple, name: str) -> None:
    layers = ("rbf", "linear") if name == "doubling" else (name,)
    problem = partial(_tile, rows=3, columns=COLUMNS, layers=layers, left=4, times=2.0, learned=True)
    _solve(run, partial(problem, same=True, labelled=True, diagonal=False), Placed(*layout))


@check("mmd_tile", "mmd_rates", name=["norms", "weights", "same", "labels"])
def columns_that_no_vector_begins(run: Run, name: str) -> None:
    problem = partial(_tile, rows=2, columns=1024, layers=("rbf",), learned=True, same=True, labelled=True)
    _solve(run, problem, Placed(shifted=name))


@check("mmd_tile", "mmd_rates", "mmd_values", left=[3, 4])
def columns_from_any_row_on(run: Run, left: int) -> None:
    """Of rows that wide loads may begin at, and of others; two layers' norms do not both begin so."""
    for layers in (("rbf",), ("rbf", "imq")):
        problem = partial(_tile, rows=2, columns=1024, layers=layers, learned=True, top=1, left=left)
        _solve(run, problem, Placed())
    _solve(run, partial(FAMILY.problems["values, rbf"], columns=1024, left=left), Placed())


@check("mmd_values", layout=LAYOUTS, columns=[1024, COLUMNS], left=[0, 4])
def values_of_any_layout(run: Run, layout: tuple, columns: int, left: int) -> None:
    _solve(run, partial(FAMILY.problems["values, rbf"], rows=3, columns=columns, left=left), Placed(*layout))


def _pairs(rows: int, tile_rows: int, layer: Layer, **rest: Any) -> Pairs:
    numbers = torch.full((1, 1), -0.5), torch.full((1, 1), 0.3)
    value = torch.zeros(tile_rows, dtype=torch.float64)
    return Pairs(
        (layer,), torch.full((1, rows), 2.0), *numbers, _ROUNDING, torch.ones(rows), None, None, 2, True,
        value, **rest,
    )  # fmt: skip


@check("mmd_rates")
def more_rates_than_a_pass_takes(run: Run) -> None:
    rates, rows = -torch.linspace(0.1, 0.6, 6), torch.randn(3, 40) / 4
    sums = torch.full((3, 1, 6), SUMMED, dtype=torch.float64)
    pairs = _pairs(43, 3, Layer("rbf", 6, learned=True), rate_sums=sums)
    pairs = dataclasses.replace(pairs, first_numbers=rates[None], second_numbers=rates[None])
    with run():
        cuda_mmd.tile(pairs, rows[None], None, 0, 3, 2.0)
    d2 = 4 - 2 * rows.double()[:, :, None]
    close(sums[:, 0] - SUMMED, 2 * (d2 * (d2 * rates.double()).exp2()).sum(1), 1e-6)


@check("mmd_tile", "mmd_rates")
def past_two_to_the_31(run: Run) -> None:
    rows = torch.randn(3, 40) / 4
    scores, sums = far(rows)[None], torch.zeros(3, 1, 1, dtype=torch.float64)
    pairs = _pairs(43, 3, Layer("rbf", 1, sloped=True, learned=True), rate_sums=sums)
    with run():
        cuda_mmd.tile(pairs, scores, scores, 0, 3, 1.0)
    d2 = 4 - 2 * rows.double()
    truth = (-0.5 * d2).exp2()
    close(scores[0], 0.3 * truth, 1e-6)
    close(pairs.value, truth.sum(1), 1e-6)
    close(sums[:, 0, 0], (d2 * truth).sum(1), 1e-6)


@check("mmd_tile")
def past_two_to_the_31_between_layers(run: Run) -> None:
    rows = torch.randn(3, 40) / 4
    scores, slopes = far(rows)[:, None], far(torch.zeros(3, 40))[:, None]
    one = _pairs(43, 1, Layer("rbf", 1))
    pairs = dataclasses.replace(
        one, layers=(Layer("rbf", 1, sloped=True),) * 3, norms=one.norms.expand(3, 43).contiguous(),
        first_numbers=one.first_numbers.expand(3, 1).contiguous(),
        second_numbers=one.second_numbers.expand(3, 1).contiguous(),
    )  # fmt: skip
    assert scores.stride(0) == FAR
    with run():
        cuda_mmd.tile(pairs, scores, slopes, 0, 3, 1.0)
    truth = (-0.5 * (4 - 2 * rows.double())).exp2().prod(0)
    close(slopes[:, 0], 0.3 * truth.expand(3, -1), 2e-6)


@check("mmd_values")
def past_two_to_the_31_in_values(run: Run) -> None:
    rows = torch.randn(3, 40) / 4
    scores = far(rows)
    with run():
        cuda_mmd.values(_pairs(43, 3, Layer("rbf", 1)), scores, 0, 3)
    close(scores, (-0.5 * (4 - 2 * rows.double())).exp2(), 1e-6)


def _digits(scores: Tensor, norms: Tensor, top: int, left: int) -> Tensor:
    """The bits of the squares of the pairs i < j."""
    rows, columns = scores.shape
    pair_norms = norms[top : top + rows, None] + norms[left : left + columns]
    squares = pair_norms - 2 * scores
    squares = squares.where(squares > _ROUNDING * pair_norms, 0.0)
    later = torch.arange(top, top + rows)[:, None] < torch.arange(left, left + columns)
    return squares[later].view(torch.int32).long()


def _counted(run: Run, scores: Tensor, norms: Tensor, top: int, left: int) -> None:
    bits = _digits(scores, norms, top, left)
    for shift in (2 * DIGIT, DIGIT, 0):
        before = int(bits[0]) >> shift >> DIGIT
        of_these = bits[bits >> shift >> DIGIT == before]
        truth = torch.bincount((of_these >> shift) % (1 << DIGIT), minlength=1 << DIGIT)
        counts, found = torch.full((1 << DIGIT,), 5), torch.tensor([before], dtype=torch.int32)
        with run(seed=shift):
            cuda_mmd.count_digits(scores, norms, found, counts, shift, top, left, _ROUNDING)
        same(counts - 5, truth)


@check("mmd_digits", columns=[1024, COLUMNS], left=[3, 4], before=[0, 1])
def digits_of_any_layout(run: Run, columns: int, left: int, before: int) -> None:
    scores = torch.randn(before + 3 * columns)[before:].view(3, columns)
    _counted(run, scores, torch.rand(left + columns) + 1, 0, left)


@check("mmd_digits")
def past_two_to_the_31_in_digits(run: Run) -> None:
    rows = torch.randn(3, 40)
    scores = far(rows)
    _counted(run, scores, torch.rand(43) + 1, 0, 3)


# after the checks above, which are short and see most bugs
for _name in FAMILY.problems:
    _kernel = {"values": "mmd_values", "digits": "mmd_digits", "learned": "mmd_rates"}
    check(_kernel.get(_name.split()[0].strip(","), "mmd_tile"), problem=[_name], dtype=[_dtype_of(_name)])(
        problems_of_triton
    )


@check("mmd_digits")
def digits_of_more_rows_than_histograms(run: Run) -> None:
    _counted(run, torch.randn(520, 5), torch.rand(525) + 1, 0, 520)


@check("mmd_tile", "mmd_rates", "mmd_values", shape=NOTHING)
def pairs_of_nothing(run: Run, shape: tuple[int, int]) -> None:
    sums = torch.full((3, 1, 1), SUMMED, dtype=torch.float64)
    pairs = _pairs(43, 3, Layer("rbf", 1, learned=True), rate_sums=sums)
    with run():
        cuda_mmd.tile(pairs, torch.empty(1, *shape), None, 0, 3, 1.0)
        cuda_mmd.values(pairs, torch.empty(shape), 0, 3)
    same(pairs.value, torch.zeros(3, dtype=torch.float64))
    same(sums, torch.full_like(sums, SUMMED))


@check("mmd_digits", shape=NOTHING)
def digits_of_nothing(run: Run, shape: tuple[int, int]) -> None:
    counts, found = torch.zeros(1 << DIGIT, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    with run():
        cuda_mmd.count_digits(torch.empty(shape), torch.ones(43), found, counts, 0, 0, 3, 0.0)
    assert not counts.any()
