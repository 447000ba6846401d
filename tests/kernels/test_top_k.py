"""Nearest rows on Triton kernels, interpreted (or on a GPU, where there is one), against the definition."""

from __future__ import annotations

import math

import pytest
import torch
from tests.ops.pairwise.test_top_k import SIMILARITIES, all_similarities, rows, small_integers

from thawkit import ops
from thawkit.ops.pairwise import gpu_panels, top_k
from thawkit.ops.pairwise import gpu_top_k as engine

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["one panel", "panels of a few rows and columns"])
def panels(request, monkeypatch):
    if request.param != "one panel":
        monkeypatch.setattr(engine, "_WIDTH", 130)
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 4000)


def found(queries, gallery, k, **options):
    with ops.use_backend("triton"):
        values, indices = top_k(queries.to(DEVICE), gallery.to(DEVICE), k, **options)
    return values.cpu(), indices.cpu()


def defined(queries, gallery, k, **options):
    with ops.use_backend("reference"):
        return top_k(queries, gallery, k, **options)


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (2, 3, 5, 7), (25, 384, 33, 10), (5, 701, 16, 100), (4, 900, 9, 3)]
)
def test_top_k_equals_float64(sizes, similarity, excluding):
    count, keys, features, k = sizes
    queries, gallery = rows(count, features), rows(keys, features, 1)
    truth = all_similarities(queries.double(), gallery.double(), similarity)
    options = {"similarity": similarity}
    if excluding:
        # the best ones, without which any other row's exclusion would show; some rows exclude none
        excluded = truth.argmax(1).where(torch.arange(count) % 3 != 1, -1)
        without = excluded[:, None] == torch.arange(keys)
        truth, options["excluded"] = truth.masked_fill(without, -math.inf), excluded.to(DEVICE)
    values, indices = found(queries, gallery, k, **options)
    assert values.shape == indices.shape == (count, k)
    expected = torch.topk(truth, min(k, keys), dim=1).values
    places = indices[:, : min(k, keys)]
    torch.testing.assert_close(values[:, : min(k, keys)], expected.float(), rtol=2e-5, atol=2e-5)
    assert torch.equal(places >= 0, expected.isfinite())
    at_places = truth.gather(1, places.clamp_min(0)).where(places >= 0, -math.inf)
    torch.testing.assert_close(at_places, expected, rtol=2e-5, atol=2e-5)
    assert (values[:, keys:] == -math.inf).all()
    assert (indices[:, keys:] == -1).all()


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("k", [1, 2, 10, 33, 128, 700])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal"])
def test_equal_ones_come_in_the_order_of_the_gallery(order, k):
    queries, gallery = small_integers(7, 6).abs(), small_integers(600, 6, 1)
    if order != "random":
        sums = gallery.sum(1).sort(descending=order == "falling").values
        gallery = sums[:, None].expand(-1, 6) if order != "equal" else gallery[:1].repeat(600, 1)
    excluded = torch.arange(7) * 3
    got = found(queries, gallery, k, excluded=excluded.to(DEVICE))
    expected = defined(queries, gallery, k, excluded=excluded)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.usefixtures("panels")
def test_zero_and_minus_zero_tie():
    gallery = torch.tensor([[1e-30], [0.0], [1e-30], [-0.0]]).repeat(60, 1)
    _, indices = found(torch.tensor([[-1e-30]]), gallery, 9)  # -1e-60 is -0 in float32
    assert indices.tolist() == [list(range(9))]


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [3, 60])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_found(value, k, similarity):
    queries, gallery = small_integers(7, 4), small_integers(250, 4, 1)
    gallery[0] = gallery[17] = value
    gallery[30, 1] = value
    queries[5, 2] = queries[6] = value
    got, expected = (search(queries, gallery, k, similarity=similarity) for search in (found, defined))
    assert not got[0].isnan().any()
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1] < 0, expected[1] < 0)
    if similarity == "dot":
        assert torch.equal(got[1], expected[1])


@pytest.mark.usefixtures("panels")
def test_minus_infinity_is_found_before_nothing():
    gallery = torch.tensor([[math.nan], [-math.inf], [1.0], [-math.inf], [math.inf]])
    values, indices = found(torch.ones(1, 1), gallery, 6)
    assert indices.tolist() == [[4, 2, 1, 3, -1, -1]]
    assert values.tolist() == [[math.inf, 1.0, *[-math.inf] * 4]]


def test_a_row_far_away_leaves_the_distances_of_others_alone():
    queries, gallery = rows(20, 16), rows(300, 16, 1)
    gallery[0] *= 1e5
    expected = torch.cdist(queries.double(), gallery.double()).sort(dim=1)
    values, indices = found(queries, gallery, 10, similarity="euclidean")
    torch.testing.assert_close(-values.double(), expected.values[:, :10].square(), rtol=1e-5, atol=1e-5)
    assert (indices == expected.indices[:, :10]).double().mean() > 0.999


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype, similarity):
    queries, gallery = rows(9, 24).to(dtype), rows(300, 24, 1).to(dtype)
    values, _ = found(queries, gallery, 12, similarity=similarity)
    assert values.dtype == torch.float32
    expected, _ = found(queries.float(), gallery.float(), 12, similarity=similarity)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "keys", "features"), [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_empty(count, keys, features, similarity):
    got, expected = (
        search(rows(count, features), rows(keys, features), 3, similarity=similarity)
        for search in (found, defined)
    )
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_non_contiguous():
    queries, gallery = rows(8, 6).t(), rows(16, 300).t()[:, ::2]
    excluded = torch.arange(12)[::2]
    got = found(queries, gallery, 5, excluded=excluded.to(DEVICE))
    expected = found(queries.contiguous(), gallery.contiguous(), 5, excluded=excluded.clone().to(DEVICE))
    assert torch.equal(got[1], expected[1])


def test_few_columns_are_selected_from():
    """Of a row of 65536 similarities torch selects from under a thirtieth."""
    columns, k = 1 << 16, 10
    group = engine._group(columns, k)
    assert columns / group + k * group < columns / 30


def test_operator_is_well_formed():
    queries, gallery = rows(9, 5).to(DEVICE), rows(12, 5, 1).to(DEVICE)
    op = torch.ops.thawkit.top_k.default
    torch.library.opcheck(op, (queries, gallery, 4, "dot", None, "triton"))
    excluded = torch.arange(9, device=DEVICE)
    torch.library.opcheck(op, (queries.half(), gallery.half(), 20, "euclidean", excluded, "triton"))


def test_compiles_without_graph_breaks():
    step = lambda q, g: top_k(q * 2, g, 3, similarity="cosine")
    inputs = rows(20, 8).to(DEVICE), rows(30, 8, 1).to(DEVICE)
    with ops.use_backend("triton"):
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(got, step(*inputs))
