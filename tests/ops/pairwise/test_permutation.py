"""Sums over a kernel matrix under permutations, and the permutations themselves, by their definitions."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.ops.conftest import relative_error
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.pairwise import permutation_sums, reference, subsets

SIZES = [  # rows, of the first sample, features, permutations
    (2, 1, 1, 1),
    (7, 3, 2, 5),
    (33, 32, 5, 31),
    (100, 64, 5, 33),
    (500, 100, 17, 70),
    (1003, 600, 33, 129),
]


def rows(count, features, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 1.3 + 0.4


def by_the_matrix(z, gamma, chosen, first):
    """All of K, entry by entry."""
    d2 = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    kernel = sum(torch.exp(-g * d2) for g in gamma.to(z)).fill_diagonal_(0)
    w = chosen.to(z)
    sums = torch.stack((kernel[:, :first].sum(1), kernel[:, first:].sum(1)), 1)
    return torch.einsum("ip,ij,jp->p", w, kernel, w), w.t() @ kernel.sum(1), sums


@pytest.mark.parametrize("gamma", [[0.3], [0.05, 0.1, 0.2, 0.4], [0.7, 0.1]])
@pytest.mark.parametrize("size", SIZES)
def test_sums_equal_float64(size, gamma):
    count, first, features, permutations = size
    z, gamma = rows(count, features), torch.tensor(gamma)
    chosen = subsets(count, first, permutations, seed=3)
    truth = by_the_matrix(z.double(), gamma, chosen, first)
    doubling = gamma.numel() == 4
    with ops.use_backend("cpu"):
        for promise in {False, doubling}:
            got = permutation_sums(z, gamma, chosen, first, doubling=promise)
            assert all(part.dtype == torch.float64 for part in got)
            assert (
                max(relative_error(a, b) for a, b in zip(got, truth, strict=True)) < 6e-6
            )  # exponents up to 40
    for a, b in zip(permutation_sums(z.double(), gamma, chosen, first), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_permutation_of_all_rows_and_of_none():
    z, gamma = rows(60, 4), torch.tensor([0.2])
    chosen = torch.stack((torch.ones(60), torch.zeros(60)), 1).to(torch.uint8)
    within, from_chosen, sums = permutation_sums(z, gamma, chosen, 25)
    assert within[1] == from_chosen[1] == 0
    torch.testing.assert_close(within[0], sums.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(from_chosen[0], sums.sum())


def test_rows_far_from_the_origin_keep_their_digits():
    z, gamma = rows(200, 8), torch.tensor([0.1])
    chosen = subsets(200, 90, 20, seed=0)
    far = z + 1e4
    truth = by_the_matrix(far.double(), gamma, chosen, 90)
    for a, b in zip(permutation_sums(far, gamma, chosen, 90), truth, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted(dtype):
    z, gamma = rows(90, 8).to(dtype), torch.tensor([0.1, 0.3])
    chosen = subsets(90, 40, 20, seed=0)
    got = permutation_sums(z, gamma, chosen, 40)
    expected = permutation_sums(z.float(), gamma, chosen, 40)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_layout_does_not_matter():
    z, gamma, chosen = rows(90, 8), torch.tensor([0.1, 0.3]), subsets(90, 40, 20, seed=0)
    got = permutation_sums(z.t().contiguous().t(), gamma, chosen.t().contiguous().t(), 40)
    expected = permutation_sums(z, gamma, chosen, 40)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_every_run_gives_the_same_sums():
    z, gamma, chosen = rows(900, 16), torch.tensor([0.1]), subsets(900, 400, 100, seed=0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [permutation_sums(z, gamma, chosen, 400) for _ in range(3)]
        assert torch.equal(subsets(900, 400, 100, seed=0), chosen)
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
    for a, b in zip(runs[0], permutation_sums(z, gamma, chosen, 400), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_extra_memory_is_a_sliver_of_the_matrix(backend, monkeypatch):
    definition = importlib.import_module("thawkit.ops.pairwise.reference.permutation")
    monkeypatch.setattr(definition, "_ENTRIES", 1 << 17)
    z, gamma, chosen = rows(6000, 4), torch.tensor([0.1]), subsets(6000, 3000, 64, seed=0)
    with (
        ops.use_backend(backend),
        torch.profiler.profile(
            profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile,
    ):
        permutation_sums(z, gamma, chosen, 3000)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < 6000 * 6000 * 4 / 20


@pytest.mark.parametrize("few", [1, 5, 100])
def test_the_definition_may_take_few_rows_at_a_time(few, monkeypatch):
    definition = importlib.import_module("thawkit.ops.pairwise.reference.permutation")
    z, gamma, chosen = rows(41, 3).double(), torch.tensor([0.1]), subsets(41, 20, 7, seed=0)
    monkeypatch.setattr(definition, "_ENTRIES", few * 41)
    for a, b in zip(permutation_sums(z, gamma, chosen, 20), by_the_matrix(z, gamma, chosen, 20), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("count", "chosen", "permutations"), [(1, 1, 3), (2, 1, 5), (9, 0, 4), (9, 7, 64), (40, 13, 200)]
)
def test_subsets_are_those_of_the_definition(count, chosen, permutations):
    for seed in (0, 1, 2**64 - 1):
        got = subsets(count, chosen, permutations, seed)
        assert torch.equal(got, reference.subsets(count, chosen, permutations, seed))
        assert got.dtype == torch.uint8
        assert (got.sum(0) == chosen).all()
        with ops.use_backend("reference"):
            assert torch.equal(subsets(count, chosen, permutations, seed), got)


def test_subsets_may_come_in_parts():
    whole = subsets(30, 12, 150, seed=7)
    parts = [subsets(30, 12, count, seed=7, first=first) for first, count in ((0, 64), (64, 1), (65, 85))]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert not torch.equal(subsets(30, 12, 150, seed=8), whole)


def test_subsets_are_uniform():
    """Each of the 20 subsets of 3 out of 6 comes as often: chi-squared of 19 degrees at p = 0.001."""
    count = 40_000
    drawn = subsets(6, 3, count, seed=5).long()
    numbers = (drawn * 2 ** torch.arange(6)[:, None]).sum(0)
    seen, times = numbers.unique(return_counts=True)
    assert len(seen) == 20
    expected = count / 20
    assert ((times - expected) ** 2 / expected).sum() < 43.8


def test_rows_are_chosen_independently_between_permutations():
    drawn = subsets(200, 100, 2000, seed=1).double() - 0.5
    correlation = drawn.t() @ drawn / 50
    off = correlation - correlation.diagonal().diag()
    assert off.abs().max() < 6 / 200**0.5


def test_operator_is_well_formed():
    z, chosen = rows(9, 5), subsets(9, 4, 6, seed=0)
    op = torch.ops.thawkit.permutation_sums.default
    torch.library.opcheck(op, (z, torch.tensor([0.1, 0.2]), chosen, 4, True, "cpu"))
    torch.library.opcheck(op, (z.half(), torch.tensor([0.1, 0.3]), chosen, 4, False, "cpu"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_graph_breaks(backend):
    chosen = subsets(20, 9, 6, seed=0)
    step = lambda z: permutation_sums(z * 2, torch.tensor([0.1]), chosen, 9)
    got = torch.compile(step, fullgraph=True, backend=backend)(rows(20, 4))
    torch.testing.assert_close(got, step(rows(20, 4)))


CHOSEN = torch.zeros(3, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("z", "gamma", "chosen", "says"),
    [
        (torch.zeros(3), torch.ones(1), CHOSEN, "z must have shape"),
        (torch.zeros(3, 1), torch.ones(0), CHOSEN, r"gamma must have shape \(bandwidths,\)"),
        (torch.zeros(4, 1), torch.ones(1), CHOSEN, r"chosen must be uint8 of shape \(4, permutations\)"),
        (torch.zeros(3, 1), torch.ones(1), CHOSEN.float(), "chosen must be uint8 .* got torch.float32"),
    ],
)
def test_bad_input(z, gamma, chosen, says):
    with pytest.raises(ThawkitError, match=says):
        permutation_sums(z, gamma, chosen, 1)
