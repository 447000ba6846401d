"""The ranking loss of queries and documents as a function."""

from __future__ import annotations

from torch import Tensor

from thawkit.ops import checks
from thawkit.ops import pairwise as _pairwise

__all__ = ["multiple_negatives_ranking"]


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
) -> Tensor:
    """Multiple negatives ranking loss (Henderson et al. 2017), names and values as in sentence-transformers.

    By default InfoNCE of each query against all documents. No matrix of similarities is stored. Further
    directions add candidates to those that query i is to prefer document i to:

    - ``query_to_query``: the other queries, by their similarity with query i;
    - ``doc_to_query``: all queries, by their similarity with document i;
    - ``doc_to_doc``: all documents of other queries, by their similarity with document i.

    Args:
        queries: (N, D).
        documents: (C N, D): ``documents[i]`` belongs to ``queries[i]``; those past N are hard negatives,
            ``documents[c * N + i]`` of query i.
        logit_scale: inverse temperature, positive; a tensor of one element gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none`` gives (N,) losses, ``mean`` and ``sum`` a scalar.
        directions: names of the above, and ``query_to_doc``, without which there is no positive.
        partition_mode: ``joint``: one softmax over the candidates of all directions (Li et al. 2023).
            ``per_direction``: one each, and the mean of the losses; only of ``query_to_doc`` and
            ``doc_to_query``.
        hardness_mode: adds ``hardness_strength`` times the similarity, taken as a constant, to the logits of
            ``query_to_doc`` of ``in_batch_negatives`` (documents of other queries; Lan et al. 2025, eq. 5),
            ``hard_negatives`` (those of the query itself) or ``all_negatives``.
        hardness_strength: at least 0.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, an unknown name, a number out of range, or there
            is nothing to take the mean of.
    """
    checks.boolean("normalize", normalize)
    return _pairwise.multiple_negatives_ranking(
        queries,
        documents,
        logit_scale,
        normalize=normalize,
        reduction=reduction,
        directions=directions,
        partition_mode=partition_mode,
        hardness_mode=hardness_mode,
        hardness_strength=hardness_strength,
    )
