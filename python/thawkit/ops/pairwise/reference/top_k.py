"""The nearest rows of a gallery, by full sorts of a few rows of similarities at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.ops.pairwise.reference.distances import centre

_CHUNK = 1 << 22  # similarities at once


def top_k(
    queries: Tensor, gallery: Tensor, k: int, similarity: str, excluded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k largest similarities of each query, in O(N k + M D) memory.

    Args:
        queries: (N, D).
        gallery: (M, D).
        k: how many are wanted of each row.
        similarity: ``dot``, ``cosine``, or ``euclidean``: minus the squared distance, NaN where the squared
            norm of a row is not finite.
        excluded: (N,) int64; the row of the gallery that each query leaves out, -1: none.

    Returns:
        (N, k) similarities, descending, equal ones in the order of the gallery, and their (N, k) indices.
        What is excluded or NaN has no place; places that remain hold -inf and -1.
    """
    if similarity == "cosine":
        queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    if similarity == "euclidean":
        middle = centre(gallery)
        queries, gallery = queries - middle, gallery - middle
    values = queries.new_full((queries.shape[0], k), -torch.inf)
    indices = torch.full(values.shape, -1, dtype=torch.int64, device=values.device)
    height = max(1, _CHUNK // max(1, gallery.shape[0]))
    for first in range(0, queries.shape[0], height):
        here = slice(first, first + height)
        scores = queries[here] @ gallery.t()
        if similarity == "euclidean":
            norms = queries[here].square().sum(1, keepdim=True), gallery.square().sum(1)
            scores = (2 * scores - norms[0] - norms[1]).clamp_max(0)
            scores = scores.where(norms[0].isfinite() & norms[1].isfinite(), torch.nan)
        without = scores.isnan()
        if excluded is not None:
            without |= excluded[here, None] == torch.arange(gallery.shape[0], device=gallery.device)
        scores = scores.masked_fill(without, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, without.gather(1, order).int().argsort(dim=1, stable=True))[:, :k]
        found = order.shape[1]
        values[here, :found] = scores.gather(1, order)
        indices[here, :found] = order.masked_fill(without.gather(1, order), -1)
    return values, indices
