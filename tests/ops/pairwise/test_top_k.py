"""Nearest rows against float64 and torch.topk: ties, odd sizes, special values, what is left out."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.pairwise import top_k

SIMILARITIES = ["dot", "cosine", "euclidean"]
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (13, 17, 1, 5),
    (25, 384, 33, 10),
    (100, 385, 16, 100),
    (97, 1001, 20, 40),
    (7, 2500, 9, 300),
    (200, 1500, 64, 1100),
]


def rows(count, features, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def small_integers(count, features, seed=0):
    """Rows whose products float32 has exactly, so that many of them tie."""
    return torch.randint(-3, 4, (count, features), generator=torch.Generator().manual_seed(seed)).float()


def all_similarities(queries, gallery, similarity):
    if similarity == "cosine":
        queries, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (queries, gallery))
    if similarity == "euclidean":
        return -(queries[:, None] - gallery).square().sum(2)
    return queries @ gallery.t()


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("sizes", SIZES)
def test_top_k_equals_float64(sizes, similarity, excluding):
    count, keys, features, k = sizes
    queries, gallery = rows(count, features), rows(keys, features, 1)
    truth = all_similarities(queries.double(), gallery.double(), similarity)
    excluded = None
    if excluding:
        excluded = torch.arange(count) * 7 % (keys + 1) - 1
        truth[torch.arange(count), excluded] = truth[torch.arange(count), excluded].where(
            excluded < 0, -math.inf
        )
    with ops.use_backend("cpu"):
        values, indices = top_k(queries, gallery, k, similarity=similarity, excluded=excluded)
    assert values.shape == indices.shape == (count, k)
    expected = torch.topk(truth, min(k, keys), dim=1).values
    found, places = values[:, : min(k, keys)], indices[:, : min(k, keys)]
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=2e-5)
    there = places >= 0
    assert torch.equal(there, expected.isfinite())
    at_places = truth.gather(1, places.clamp_min(0)).where(there, -math.inf)
    torch.testing.assert_close(at_places, expected, rtol=2e-5, atol=2e-5)
    assert (found.diff() <= 0).logical_or(~there[:, 1:]).all()
    for row, present in zip(places, there, strict=True):
        assert row[present].unique().numel() == int(present.sum())
    assert (values[:, keys:] == -math.inf).all()
    assert (indices[:, keys:] == -1).all()


@pytest.mark.parametrize("k", [1, 2, 10, 33, 128, 129, 700])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal"])
@pytest.mark.parametrize("count", [7, 30])
def test_equal_ones_come_in_the_order_of_the_gallery(count, order, k):
    queries, gallery = small_integers(count, 6).abs(), small_integers(1300, 6, 1)
    if order != "random":
        by_sum = gallery.sum(1).argsort(descending=order == "falling")
        gallery = (
            gallery.sum(1)[by_sum, None].expand(-1, 6) if order != "equal" else gallery[:1].repeat(1300, 1)
        )
    excluded = torch.arange(count) * 3
    got = top_k(queries, gallery, k, excluded=excluded)
    with ops.use_backend("reference"):
        expected = top_k(queries, gallery, k, excluded=excluded)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    scores = queries.double() @ gallery.double().t()
    for i in (0, count // 2, count - 1):
        candidates = [j for j in range(1300) if j != 3 * i]
        assert got[1][i].tolist() == sorted(candidates, key=lambda j: (-scores[i, j], j))[:k]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("count", [5, 50])
def test_copies_of_a_row_tie(count, similarity):
    gallery = rows(11, 37).repeat(90, 1)
    values, indices = top_k(rows(count, 37, 1), gallery, 200, similarity=similarity)
    classes = indices[:, :180].reshape(count, 2, 90)
    assert torch.equal(classes % 11, (classes[:, :, :1] % 11).expand(-1, -1, 90))
    assert (classes.diff(dim=2) == 11).all()
    assert (values[:, :180].reshape(count, 2, 90).diff(dim=2) == 0).all()


@pytest.mark.parametrize("count", [1, 30])
def test_zero_and_minus_zero_tie(count):
    gallery = torch.tensor([[1e-30], [0.0], [1e-30], [-0.0]])
    _, indices = top_k(torch.tensor([[-1e-30]]).repeat(count, 1), gallery, 4)  # -1e-60 is -0 in float32
    assert indices.tolist() == [[0, 1, 2, 3]] * count


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [3, 60])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [7, 30])
def test_what_is_no_number_is_never_found(count, value, k, similarity):
    queries, gallery = small_integers(count, 4), small_integers(50, 4, 1)
    gallery[0] = gallery[17] = value
    gallery[30, 1] = value
    queries[5, 2] = queries[6] = value
    got = top_k(queries, gallery, k, similarity=similarity)
    with ops.use_backend("reference"):
        expected = top_k(queries, gallery, k, similarity=similarity)
    assert not got[0].isnan().any()
    if similarity == "dot":
        assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    scores = all_similarities(queries, gallery, similarity)
    lost = got[1] < 0
    if math.isnan(value) or similarity != "dot":
        assert torch.equal(lost.sum(1), k - (scores.isfinite().sum(1)).clamp_max(k))
    else:
        assert torch.equal(lost.sum(1), k - (~scores.isnan()).sum(1).clamp_max(k))


def test_minus_infinity_is_found_before_nothing():
    gallery = torch.tensor([[math.nan], [-math.inf], [1.0], [-math.inf], [math.inf]])
    values, indices = top_k(torch.ones(1, 1), gallery, 6)
    assert indices.tolist() == [[4, 2, 1, 3, -1, -1]]
    assert values.tolist() == [[math.inf, 1.0, *[-math.inf] * 4]]


@pytest.mark.parametrize("offset", [1e4, 1e6 / 3])
def test_distances_far_from_the_origin_keep_their_digits(offset):
    queries, gallery = rows(40, 8), rows(2000, 8, 1)
    far = [x + offset for x in (queries, gallery)]
    truth = all_similarities(*(x.double() for x in far), "euclidean")
    values, indices = top_k(*far, 20, similarity="euclidean")
    expected = truth.topk(20, dim=1).values
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(truth.gather(1, indices), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("count", [3, 200])
def test_a_row_far_away_leaves_the_distances_of_others_alone(count, backend):
    queries, gallery = rows(count, 16), rows(300, 16, 1)
    gallery[0] *= 1e5
    expected = torch.cdist(queries.double(), gallery.double()).sort(dim=1)
    with ops.use_backend(backend):
        values, indices = top_k(queries, gallery, 10, similarity="euclidean")
    torch.testing.assert_close(-values.double(), expected.values[:, :10].square(), rtol=1e-5, atol=1e-5)
    assert (indices == expected.indices[:, :10]).double().mean() > 0.999


def test_a_row_is_at_no_distance_from_its_copy():
    x = rows(50, 30) + 3
    values, indices = top_k(x, x, 1, similarity="euclidean")
    assert torch.equal(indices[:, 0], torch.arange(50))
    assert (values <= 0).all()
    assert values.abs().max() < 1e-4


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype, similarity):
    queries, gallery = rows(30, 24).to(dtype), rows(500, 24, 1).to(dtype)
    got = top_k(queries, gallery, 12, similarity=similarity)
    assert got[0].dtype == torch.float32
    expected = top_k(queries.float(), gallery.float(), 12, similarity=similarity)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_float64_stays_float64():
    values, _ = top_k(rows(3, 2).double(), rows(4, 2).double(), 2)
    assert values.dtype == torch.float64


@pytest.mark.parametrize(("count", "keys", "features"), [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_empty(count, keys, features, similarity):
    got = top_k(rows(count, features), rows(keys, features), 3, similarity=similarity)
    with ops.use_backend("reference"):
        expected = top_k(rows(count, features), rows(keys, features), 3, similarity=similarity)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_non_contiguous():
    queries, gallery = rows(8, 60).t(), rows(16, 300).t()[:, ::2]
    got = top_k(queries, gallery, 5, excluded=torch.arange(120)[::2])
    expected = top_k(queries.contiguous(), gallery.contiguous(), 5, excluded=torch.arange(120)[::2].clone())
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_changes_nothing(threads):
    queries, gallery = rows(700, 64), rows(900, 64, 1)
    before = torch.get_num_threads()
    expected = top_k(queries, gallery, 20)
    torch.set_num_threads(threads)
    try:
        got = top_k(queries, gallery, 20)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_there_is_no_gradient():
    values, _ = top_k(rows(3, 2).requires_grad_(), rows(4, 2).requires_grad_(), 2)
    assert not values.requires_grad


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_extra_memory_is_a_sliver_of_the_matrix(backend, monkeypatch):
    definition = importlib.import_module("thawkit.ops.pairwise.reference.top_k")
    monkeypatch.setattr(definition, "_CHUNK", 1 << 16)
    queries, gallery = rows(1000, 32), rows(12000, 32, 1)
    with (
        ops.use_backend(backend),
        torch.profiler.profile(
            profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile,
    ):
        top_k(queries, gallery, 10)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < 1000 * 12000 * 4 / 10


def test_top_k_operator_is_well_formed():
    queries, gallery = rows(9, 5), rows(12, 5, 1)
    op = torch.ops.thawkit.top_k.default
    torch.library.opcheck(op, (queries, gallery, 4, "dot", None, "cpu"))
    torch.library.opcheck(op, (queries.half(), gallery.half(), 20, "euclidean", torch.arange(9), "cpu"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_top_k_compiles_without_graph_breaks(backend):
    step = lambda q, g: top_k(q * 2, g, 3, similarity="cosine")
    inputs = rows(20, 8), rows(30, 8, 1)
    got = torch.compile(step, fullgraph=True, backend=backend)(*inputs)
    torch.testing.assert_close(got, step(*inputs))


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(3, 2), 1, {}, "queries must have shape"),
        (torch.zeros(3, 2), torch.zeros(3, 4), 1, {}, "number of features"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), 1, {}, "same dtype"),
        (torch.zeros(3, 2).int(), torch.zeros(3, 2).int(), 1, {}, "queries must be float32"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 0, {}, "k must be an integer, at least 1, got 0"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 1.5, {}, "k must be an integer"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 1, {"similarity": "l1"}, "similarity must be one of"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 1, {"excluded": [0, 1, 2]}, "excluded must be a tensor"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 1, {"excluded": torch.zeros(3)}, "excluded must be a tensor"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            1,
            {"excluded": torch.arange(2)},
            "one index for each of the 3",
        ),
    ],
)
def test_top_k_bad_input(queries, gallery, k, options, says):
    with pytest.raises(ThawkitError, match=says):
        top_k(queries, gallery, k, **options)
