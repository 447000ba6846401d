"""Retrieval metrics against their definition in plain Python, and pytorch-metric-learning's."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.functional import retrieval


def clusters(count, features, classes, seed=0, dtype=torch.float32):
    """Rows of classes of very unequal size, some of a single row, close enough to be taken for each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) ** 3 * classes).long() * 5 - 7
    centres = torch.randn(classes * 5, features, generator=torch.Generator().manual_seed(99))
    return (centres[labels] + torch.randn(count, features, generator=generator)).to(dtype), labels


def by_definition(queries, labels, gallery, gallery_labels, recall_at, neighbours, distance, itself):
    queries, gallery = queries.double(), gallery.double()
    if distance == "cosine":
        queries, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (queries, gallery))
    totals, counted = Counter(), 0
    for i, (query, label) in enumerate(zip(queries, labels.tolist(), strict=True)):
        nearness = -(query - gallery).square().sum(1) if distance == "euclidean" else gallery @ query
        others = [j for j in range(len(gallery)) if not (itself and j == i)]
        names = [int(gallery_labels[j]) for j in sorted(others, key=lambda j: (-nearness[j].item(), j))]
        hits = [name == label for name in names]
        r = sum(hits)
        if not r:
            continue
        counted += 1
        for k in recall_at:
            totals[k] += any(hits[:k])
        totals["precision_at_1"] += hits[0]
        totals["r_precision"] += sum(hits[:r]) / r
        totals["map_at_r"] += sum(sum(hits[:n]) / n for n in range(1, r + 1) if hits[n - 1]) / r
        votes = Counter(names[:neighbours])
        winner = min(votes, key=lambda name: (-votes[name], names.index(name)))
        totals["knn_accuracy"] += winner == label
    means = {name: total / counted for name, total in totals.items()}
    recalls = {k: means.pop(k) for k in recall_at}
    return retrieval.RetrievalMetrics(
        recalls, **means, queries=counted, without_positive=len(queries) - counted
    )


def same(got, expected):
    assert (got.queries, got.without_positive) == (expected.queries, expected.without_positive)
    assert got.recall_at == pytest.approx(expected.recall_at, rel=1e-12)
    for name in ("precision_at_1", "r_precision", "map_at_r", "knn_accuracy"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("entries", [retrieval._ENTRIES, 500])
def test_metrics_by_their_definition(entries, itself, distance, monkeypatch):
    monkeypatch.setattr(retrieval, "_ENTRIES", entries)  # the rows come in chunks of unequal depth
    queries, labels = clusters(150, 12, 30)
    gallery, gallery_labels = (queries, labels) if itself else clusters(210, 12, 25, seed=1)
    given = (queries, labels) if itself else (queries, labels, gallery, gallery_labels)
    options = {"recall_at": (1, 4, 30, 1000), "neighbours": 7, "distance": distance}
    got = F.retrieval_metrics(*given, **options)
    expected = by_definition(queries, labels, gallery, gallery_labels, itself=itself, **options)
    assert 0 < got.map_at_r < got.r_precision < 1
    assert got.without_positive > 0
    same(got, expected)
    with ops.use_backend("reference"):
        same(F.retrieval_metrics(*given, **options), expected)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("itself", [True, False])
def test_metrics_equal_those_of_pytorch_metric_learning(itself, distance):
    reason = "pytorch-metric-learning and faiss-cpu are peers, which this environment does not have"
    pytest.importorskip("faiss", reason=reason)
    calculators = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator", reason=reason)
    calculator = calculators.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count"
    )
    queries, labels = clusters(400, 24, 60)
    gallery, gallery_labels = (None, None) if itself else clusters(500, 24, 50, seed=1)
    got = F.retrieval_metrics(queries, labels, gallery, gallery_labels, distance=distance)
    if distance == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=1)
        gallery = None if gallery is None else torch.nn.functional.normalize(gallery, dim=1)
    theirs = calculator.get_accuracy(queries, labels, gallery, gallery_labels)
    # Rounding may exchange two neighbours that are as good as equally far, deep in one of 400 lists.
    assert got.precision_at_1 == pytest.approx(theirs["precision_at_1"], rel=1e-12)
    assert got.r_precision == pytest.approx(theirs["r_precision"], rel=1e-12)
    assert got.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_an_example_by_hand():
    queries = torch.tensor([[0.0], [1.0], [2.1], [3.3], [10.0]])
    got = F.retrieval_metrics(
        queries,
        torch.tensor([0, 1, 0, 0, 2]),
        recall_at=(1, 2),
        neighbours=3,
        distance="euclidean",
    )
    # neighbours of the rows of class 0: 1 0 0 2, 1 0 0 2 (of 2.1: 1.0 before 3.3? no: 1.1 < 1.2), 0 1 0 2
    assert got.recall_at == {1: pytest.approx(1 / 3), 2: pytest.approx(1.0)}
    assert got.r_precision == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert got.map_at_r == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert got.knn_accuracy == pytest.approx(1.0)
    assert (got.queries, got.without_positive) == (3, 2)


def test_equally_many_votes_go_to_the_class_found_first():
    found = torch.tensor([[3, 1, 1, 3], [2, 0, 0, 2], [5, 4, 3, 3], [-1, -1, -1, -1], [7, -1, -1, -1]])
    assert retrieval._vote(found).tolist() == [3, 2, 3, -1, 7]


def test_a_query_that_is_no_number_is_a_miss():
    queries, labels = clusters(60, 8, 3)
    queries[:6] = math.nan
    got = F.retrieval_metrics(queries, labels)
    whole = F.retrieval_metrics(queries[6:], labels[6:], recall_at=(1,))
    assert got.queries == 60 - got.without_positive
    assert got.precision_at_1 == pytest.approx(whole.precision_at_1 * whole.queries / got.queries)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    queries, labels = clusters(100, 16, 10, dtype=dtype)
    same(F.retrieval_metrics(queries, labels), F.retrieval_metrics(queries.double(), labels))


@pytest.mark.parametrize("labels", [torch.arange(6), torch.zeros(0, dtype=torch.int64)])
def test_nothing_to_find(labels):
    got = F.retrieval_metrics(torch.randn(labels.numel(), 3), labels)
    assert (got.queries, got.without_positive) == (0, labels.numel())
    assert math.isnan(got.map_at_r)
    assert all(math.isnan(recall) for recall in got.recall_at.values())


def test_a_gallery_of_other_classes_or_none():
    queries, labels = clusters(5, 3, 2)
    got = F.retrieval_metrics(queries, labels, queries, labels + 1)
    assert (got.queries, got.without_positive) == (0, 5)
    got = F.retrieval_metrics(queries, labels, queries[:0], labels[:0])
    assert (got.queries, got.without_positive) == (0, 5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_labels_of_any_integer_type(dtype):
    queries, labels = clusters(40, 6, 2)
    labels = (labels > -7).to(dtype)
    same(F.retrieval_metrics(queries, labels), F.retrieval_metrics(queries, labels.long()))


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ((torch.zeros(3), torch.zeros(3).int()), {}, "queries must have shape"),
        (
            (torch.zeros(3, 2), torch.zeros(3)),
            {},
            "query_labels must hold integers, got torch.float32",
        ),
        ((torch.zeros(3, 2), [0, 1, 2]), {}, "query_labels must be a tensor, got list"),
        ((torch.zeros(3, 2), torch.zeros(2).int()), {}, "one label a row of queries"),
        (
            (torch.zeros(3, 2), torch.zeros(3).int(), torch.zeros(4, 2)),
            {},
            "gallery came without gallery_labels",
        ),
        (
            (torch.zeros(3, 2), torch.zeros(3).int(), None, torch.zeros(3).int()),
            {},
            "gallery_labels came without gallery",
        ),
        (
            (torch.zeros(3, 2), torch.zeros(3).int(), torch.zeros(4, 2), torch.zeros(3).int()),
            {},
            "one label a row of gallery",
        ),
        (
            (torch.zeros(3, 2), torch.zeros(3).int()),
            {"recall_at": (1, 0)},
            "recall_at must be an integer of at",
        ),
        ((torch.zeros(3, 2), torch.zeros(3).int()), {"neighbours": 2.0}, "neighbours must be an integer"),
        ((torch.zeros(3, 2), torch.zeros(3).int()), {"distance": "l1"}, "distance must be one of"),
    ],
)
def test_bad_input(given, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.retrieval_metrics(*given, **options)
