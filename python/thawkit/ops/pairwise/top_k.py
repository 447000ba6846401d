"""The nearest rows of a gallery to each query, without the matrix of pairs: schema, checks."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import define
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import cpu, cuda_top_k, reference, triton_top_k

KERNELS = {"cpu": cpu, "cuda": cuda_top_k, "triton": triton_top_k}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}
SIMILARITIES = ("dot", "cosine", "euclidean")


def top_k(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    similarity: str = "dot",
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most similar rows of ``gallery`` to each row of ``queries``. There is no gradient.

    Args:
        queries: (N, D).
        gallery: (M, D) of the same dtype.
        k: how many, at least 1; it may exceed M.
        similarity: ``dot``, the inner product; ``cosine``, that of the rows divided by their Euclidean norms;
            ``euclidean``, minus the squared distance, with the data centred first so that it keeps its
            digits. A row whose squared norm is not finite is at no distance from anything (NaN).
        excluded: (N,) int64: the row of the gallery that each query leaves out, which is itself where the
            queries are rows of the gallery; -1 leaves out none.

    Returns:
        (N, k) similarities (float64 for float64 inputs, else float32), descending, equal ones in the order of
        the gallery, and their (N, k) int64 indices. A similarity that is NaN is none: it has no place. Places
        that remain where fewer than k rows are found hold the similarity -inf and the index -1.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, k is no positive number, an unknown name.
    """
    _check_top_k(queries, gallery, k, similarity, excluded)
    queries, gallery = queries.detach(), gallery.detach()
    backend = choose("top_k", OBJECTIONS, queries, gallery)
    if backend == "reference":
        if queries.dtype in (torch.bfloat16, torch.float16):
            queries, gallery = queries.float(), gallery.float()
        return reference.top_k(queries, gallery, k, similarity, excluded)
    return _top_k_op(queries, gallery, k, similarity, excluded, backend)


def _check_top_k(queries: Tensor, gallery: Tensor, k: int, similarity: str, excluded: Tensor | None) -> None:
    checks.row_pair("queries", queries, "gallery", gallery)
    checks.one_of("similarity", similarity, SIMILARITIES)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ThawkitError(f"k must be an integer, at least 1, got {k!r}")
    if gallery.shape[0] >= 2**31:
        raise ThawkitError(f"gallery must have fewer than 2**31 rows, got {gallery.shape[0]}")
    if excluded is None:
        return
    if not isinstance(excluded, Tensor) or excluded.dtype != torch.int64:
        came = excluded.dtype if isinstance(excluded, Tensor) else type(excluded).__name__
        raise ThawkitError(f"excluded must be a tensor of int64 indices, got {came}")
    if excluded.shape != queries.shape[:1]:
        raise ThawkitError(
            f"excluded must have one index for each of the {queries.shape[0]} queries, "
            f"got shape {tuple(excluded.shape)}"
        )
    checks.same_device("excluded", excluded, "queries", queries)


_top_k_op = define(
    "top_k(Tensor queries, Tensor gallery, int k, str similarity, Tensor? excluded, str backend) "
    "-> (Tensor, Tensor)",
    lambda queries, gallery, k, similarity, excluded, backend: KERNELS[backend].top_k(
        queries, gallery, k, similarity, excluded
    ),
    lambda queries, gallery, k, similarity, excluded, backend: (
        queries.new_empty((queries.shape[0], k), dtype=torch.float32),
        queries.new_empty((queries.shape[0], k), dtype=torch.int64),
    ),
)
