"""How well embeddings retrieve rows of their own class: recall@k, R-precision, MAP@R, kNN accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise import top_k


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have a positive, a row of their class to find; NaN where there is none.

    Attributes:
        recall_at: for each k the share of queries with a positive among their k nearest rows.
        precision_at_1: the share of queries whose nearest row is a positive.
        r_precision: the share of positives among a query's R nearest rows, R being the number of its
            positives.
        map_at_r: ``1/R sum_{i <= R} P(i)``, P(i) being the share of positives among the i nearest rows where
            the i-th is one, else 0 (Musgrave et al. 2020, sec. 2.3).
        knn_accuracy: the share of queries whose class has most of their nearest rows' votes.
        queries: how many were counted.
        without_positive: how many were not, because the gallery has no other row of their class.
    """

    recall_at: dict[int, float]
    precision_at_1: float
    r_precision: float
    map_at_r: float
    knn_accuracy: float
    queries: int
    without_positive: int


_ENTRIES = 1 << 21  # neighbours looked at together


@torch.no_grad()
def retrieval_metrics(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    recall_at: tuple[int, ...] = (1, 5, 10),
    neighbours: int = 20,
    distance: str = "cosine",
) -> RetrievalMetrics:
    """Retrieval metrics of embeddings, without the matrix of all pairs.

    Args:
        queries: (N, D) embeddings.
        query_labels: (N,) integers.
        gallery: (M, D) rows to be found; None: the queries, each of which does not find itself.
        gallery_labels: (M,) integers, given with ``gallery``.
        recall_at: the k of recall@k, each at least 1.
        neighbours: how many nearest rows have a vote each in the kNN accuracy. Among classes with equally
            many votes the one with the nearest row wins.
        distance: nearest is the largest ``cosine`` or ``dot`` product or the smallest ``euclidean`` distance,
            and among equally near rows the first of the gallery. A row that has NaN is far from all: as a
            query it finds nothing and counts as a miss.

    Returns:
        The metrics, as Python numbers.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a k is no positive integer, an unknown name.
    """
    itself = gallery is None
    if gallery is None:
        if gallery_labels is not None:
            raise ThawkitError("gallery_labels came without gallery")
        gallery, gallery_labels = queries, query_labels
    elif gallery_labels is None:
        raise ThawkitError("gallery came without gallery_labels")
    checks.row_pair("queries", queries, "gallery", gallery)
    checks.labels("query_labels", query_labels, "queries", queries)
    checks.labels("gallery_labels", gallery_labels, "gallery", gallery)
    checks.one_of("distance", distance, ("cosine", "euclidean", "dot"))
    if not isinstance(recall_at, tuple | list):
        raise ThawkitError(f"recall_at must be a tuple of integers, got {recall_at!r}")
    for k in recall_at:
        checks.integer("recall_at", k, 1)
    checks.integer("neighbours", neighbours, 1)

    query_class, gallery_class, positives = _classes(query_labels, gallery_labels, itself)
    if queries.dtype in (torch.bfloat16, torch.float16):
        queries, gallery = queries.float(), gallery.float()
    candidates = gallery.shape[0] - itself
    least = min(max(*recall_at, neighbours, 1), candidates)
    totals = torch.zeros(len(recall_at) + 4, dtype=torch.float64, device=queries.device)
    counted = int((positives > 0).sum())
    for rows, deepest in _chunks(positives, counted, least):
        _, nearest = top_k(
            queries[rows],
            gallery,
            max(deepest, least),
            similarity=distance,
            excluded=rows if itself else None,
        )
        found = gallery_class[nearest.clamp_min(0)].where(nearest >= 0, -1)
        hits = found == query_class[rows, None]
        votes = _vote(found[:, :neighbours]) == query_class[rows]
        of_each = (
            *(hits[:, :k].any(1) for k in recall_at),
            hits[:, 0],
            *_at_r(hits[:, :deepest], positives[rows]),
            votes,
        )
        totals += torch.stack([x.sum(dtype=torch.float64) for x in of_each])
    means = [total / counted if counted else math.nan for total in totals.tolist()]
    recalls, (precision, r_precision, map_at_r, accuracy) = means[:-4], means[-4:]
    return RetrievalMetrics(
        dict(zip(recall_at, recalls, strict=True)),
        precision,
        r_precision,
        map_at_r,
        accuracy,
        counted,
        positives.numel() - counted,
    )


def _classes(query_labels: Tensor, gallery_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Number the classes from 0; count how many rows of each query's class the gallery has besides itself."""
    names, numbers = torch.cat((query_labels, gallery_labels)).unique(return_inverse=True)
    query_class, gallery_class = numbers.split((query_labels.shape[0], gallery_labels.shape[0]))
    sizes = torch.bincount(gallery_class, minlength=names.shape[0])
    return query_class, gallery_class, sizes[query_class] - int(itself)


def _chunks(positives: Tensor, counted: int, least: int) -> Iterator[tuple[Tensor, int]]:
    """Queries by falling number of positives, with the most of each chunk: few need the longest lists."""
    most, order = positives.sort(descending=True, stable=True)
    start = 0
    while start < counted:
        deepest = int(most[start])
        end = min(counted, start + max(1, _ENTRIES // max(deepest, least)))
        yield order[start:end], deepest
        start = end


def _at_r(hits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """R-precision and average precision at R of each row."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (ranks <= positives[:, None])
    precisions = hits.cumsum(1) / ranks.double()
    return hits.sum(1) / positives.double(), (precisions * hits).sum(1) / positives


def _vote(found: Tensor) -> Tensor:
    """Return the class found most often in each row, among equals the one found first; -1 is no class."""
    votes = torch.zeros_like(found)
    for column in found.unbind(1):
        votes += found == column[:, None]
    votes.masked_fill_(found < 0, 0)
    first = votes.argmax(1, keepdim=True)
    return found.gather(1, first)[:, 0]
