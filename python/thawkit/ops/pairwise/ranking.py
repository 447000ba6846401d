"""The ranking loss of queries and documents in either direction, and with weights of hard negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.clip import clip
from thawkit.ops.pairwise.common import full_precision, lifted, product, reduced
from thawkit.ops.pairwise.info_nce import info_nce
from thawkit.ops.pairwise.row_softmax import Columns, row_softmax

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PARTITIONS = ("joint", "per_direction")
HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


def multiple_negatives_ranking(
    queries: Tensor,
    documents: Tensor,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    directions: tuple[str, ...] = ("query_to_doc",),
    partition_mode: str = "joint",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
) -> Tensor:
    """Multiple negatives ranking loss (Henderson et al. 2017; Li et al. 2023).

    Args:
        queries: (N, D).
        documents: (C N, D) of the same dtype: the positives in the order of the queries, then, in the same
            order, further columns of negatives.
        logit_scale: inverse temperature, a positive number or a tensor of one element, which gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.
        directions: of ``DIRECTIONS``, ``query_to_doc`` among them.
        partition_mode: one softmax over all directions (``joint``), or the mean of one each.
        hardness_mode: which negatives of ``query_to_doc`` weigh by their hardness; None: none.
        hardness_strength: factor of the similarity, without gradient, that is added to their logits.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, an unknown name, a number out of range, or there
            is nothing to take the mean of.
    """
    check_documents(queries, documents)
    check_ranking_options(directions, partition_mode, hardness_mode, hardness_strength)
    checks.positive_scalar("logit_scale", logit_scale)
    scale = checks.one_number("logit_scale", logit_scale, queries)
    checks.reduced("queries", queries.shape[0], reduction)
    if hardness_mode is None or hardness_strength == 0:
        common: dict[str, Any] = {"normalize": normalize, "reduction": reduction}
        if set(directions) == {"query_to_doc"}:
            return info_nce(queries, documents, scale, **common)
        if partition_mode == "per_direction" and documents.shape == queries.shape:
            return clip(queries, documents, scale, **common)
    with full_precision(queries):
        queries, documents = lifted(queries), lifted(documents)  # several gradients of theirs add up
        if normalize:
            queries, documents = F.normalize(queries, dim=1), F.normalize(documents, dim=1)
        rows = ranking_rows(
            queries,
            documents,
            slice(0, queries.shape[0]),
            scale,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
        )
        return reduced(rows, reduction)


def ranking_rows(
    everyone: Tensor,
    documents: Tensor,
    own: slice,
    scale: Tensor,
    directions: tuple[str, ...],
    partition_mode: str,
    hardness_mode: str | None,
    strength: float,
) -> Tensor:
    """Losses of the rows ``own`` of the queries ``everyone`` (N, D), which is ``slice(start, stop)``.

    Each is the log-sum-exp over each direction's candidates, less the logit of the positive.
    """
    n = everyone.shape[0]
    columns = documents.shape[0] // n if n else 1
    queries, positives = everyone[own], documents[:n][own]
    query = torch.arange(n, dtype=torch.int32, device=everyone.device)
    none = torch.full_like(query[own], -1, dtype=torch.int64)
    of_others: dict[str, Any] = {
        "row_labels": query[own],
        "key_labels": query.repeat(columns),
        "columns": Columns(labels="drop same"),
    }

    def log_sum(rows: Tensor, keys: Tensor, factor: Tensor = scale, **which: Any) -> Tensor:
        return row_softmax(rows, keys, factor, target=none, reduce=False, **which)

    # similarities of each query with its own documents, the positive first
    per_query = lifted(documents).reshape(columns, n, everyone.shape[1])[:, own]
    similar = product(per_query.transpose(0, 1), lifted(queries)[:, :, None]).squeeze(2)
    positive = scale * similar[:, 0]
    if hardness_mode is None or strength == 0:
        hardness_mode = None
    elif hardness_mode != "hard_negatives":
        # scale q.d + strength q.d, the latter as a constant: one product of rows of twice the length
        hard_queries = torch.cat((scale * lifted(queries), strength * lifted(queries).detach()), 1)
        hard_documents = torch.cat((lifted(documents), lifted(documents).detach()), 1)
        one = torch.ones_like(scale)
    terms = []
    for direction in dict.fromkeys(directions):
        if direction == "query_to_query":
            term = log_sum(queries, everyone, columns=Columns(excluded=own.start))
        elif direction == "doc_to_query":
            term = log_sum(positives, everyone)
        elif direction == "doc_to_doc":
            term = log_sum(positives, documents, **of_others)
        elif hardness_mode is None:
            term = log_sum(queries, documents)
        elif hardness_mode == "hard_negatives":
            hard = scale * similar[:, 1:] + strength * similar[:, 1:].detach()
            near = torch.cat((positive[:, None], hard), 1).logsumexp(1)
            term = torch.logaddexp(near, log_sum(queries, documents, **of_others))
        elif hardness_mode == "all_negatives":
            far = log_sum(hard_queries, hard_documents, one, columns=Columns(excluded=own.start))
            term = torch.logaddexp(positive, far)
        else:
            far = log_sum(hard_queries, hard_documents, one, **of_others)
            term = torch.logaddexp((scale * similar).logsumexp(1), far)
        terms.append(term)
    together = torch.stack(terms)
    return (together.logsumexp(0) if partition_mode == "joint" else together.mean(0)) - positive


def check_ranking_options(
    directions: tuple[str, ...], partition_mode: str, hardness_mode: str | None, hardness_strength: float
) -> None:
    """Require known names that go together, and a strength of 0 or more."""
    if isinstance(directions, str) or "query_to_doc" not in directions:
        raise ThawkitError(
            f"directions must be several names, 'query_to_doc' among them, whose pairs are the positives, "
            f"got {directions!r}"
        )
    for direction in directions:
        checks.one_of("directions", direction, DIRECTIONS)
    checks.one_of("partition_mode", partition_mode, PARTITIONS)
    if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
        raise ThawkitError(
            "partition_mode='per_direction' needs the positive among each direction's candidates, and "
            f"'query_to_query' and 'doc_to_doc' have none, got directions={tuple(directions)!r}"
        )
    if hardness_mode is not None:
        checks.one_of("hardness_mode", hardness_mode, HARDNESS)
    checks.finite("hardness_strength", hardness_strength)
    if hardness_strength < 0:
        raise ThawkitError(f"hardness_strength must be at least 0, got {hardness_strength}")


def check_documents(queries: Tensor, documents: Tensor) -> None:
    """Require columns of as many documents as there are queries."""
    checks.row_pair("queries", queries, "documents", documents)
    n, rows = queries.shape[0], documents.shape[0]
    if rows < n or (rows % n if n else rows):
        raise ThawkitError(
            f"documents must have one row or more for each of {n} queries, as many for each, got {rows} rows"
        )
