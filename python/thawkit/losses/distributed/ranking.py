"""The ranking loss of queries and documents across ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize as normalized

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.distributed.exchange import gather, replicated, total
from thawkit.losses.distributed.ranks import UNTRACED, Ranks, meet
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, summand
from thawkit.ops.pairwise.ranking import check_documents, check_ranking_options, ranking_rows


@torch.compiler.disable(reason=UNTRACED)
def multiple_negatives_ranking(
    queries: Tensor,
    documents: Tensor,
    *,
    logit_scale: Tensor | float = 20.0,
    normalize: bool = True,
    reduction: str = "mean",
    directions: tuple[str, ...] = ("query_to_doc",),
    partition_mode: str = "joint",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Multiple negatives ranking loss of this rank's queries, the candidates being those of all ranks.

    See :func:`thawkit.losses.functional.multiple_negatives_ranking`. Queries and documents are gathered.

    Args:
        queries: (N, D) of this rank.
        documents: (C N, D) of this rank, in columns; C is the same on all ranks that have queries.
        logit_scale: inverse temperature, the same on all ranks; a tensor of one element gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``mean`` or ``sum`` over the queries of all ranks; ``none``: (N,) losses of this rank's.
        directions: which similarities the softmax goes over.
        partition_mode: ``joint`` or ``per_direction``.
        hardness_mode: None, ``in_batch_negatives``, ``hard_negatives`` or ``all_negatives``.
        hardness_strength: at least 0.
        group: the ranks; None: all.

    Returns:
        Scalar, or (N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others.
    """
    ranks = Ranks.of(group, "gather")
    options: dict[str, Any] = {
        "normalize": normalize,
        "reduction": reduction,
        "directions": directions,
        "partition_mode": partition_mode,
        "hardness_mode": hardness_mode,
    }
    numbers: dict[str, Any] = {"logit_scale": logit_scale, "hardness_strength": hardness_strength}
    if ranks is None:
        return F.multiple_negatives_ranking(queries, documents, **numbers, **options)

    def check() -> None:
        check_documents(queries, documents)
        check_ranking_options(directions, partition_mode, hardness_mode, hardness_strength)
        checks.positive_scalar("logit_scale", logit_scale)
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)

    tensors = {"queries": queries, "documents": documents}
    rows, of_documents = meet(
        ranks, "multiple_negatives_ranking", tensors, numbers, options, ["queries", "documents"], check
    )
    checks.reduced("queries", rows.total, reduction)
    counts = {d // n for n, d in zip(rows.counts, of_documents.counts, strict=True) if n}
    if len(counts) > 1:
        raise ThawkitError(
            f"documents must have as many columns on all ranks, got {of_documents.counts} rows for "
            f"{rows.counts} queries"
        )
    columns = counts.pop() if counts else 1
    with full_precision(queries):
        scale = replicated(checks.one_number("logit_scale", logit_scale, queries), ranks)
        if normalize:
            queries, documents = (normalized(lifted(x), dim=1) for x in (queries, documents))
        by_query = documents.reshape(columns, rows.own, documents.shape[1]).transpose(0, 1)
        losses = ranking_rows(
            gather(queries, rows),
            gather(by_query, rows).transpose(0, 1).flatten(0, 1),
            slice(rows.before, rows.before + rows.own),
            scale,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
        )
        factor = summand(reduction, rows.total)
        return losses if factor is None else total(losses.sum() * factor, ranks)
