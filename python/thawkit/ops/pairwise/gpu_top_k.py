"""The nearest rows of a gallery on a GPU: panels of cuBLAS products, and the largest of a few of each row.

To select from all products would take several passes over them; two kernels leave some hundreds of each row,
from which torch selects by integer keys, so that ties have one order only. They are Triton's or CUDA C++'s,
which take the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.kernels.top_k_scores import LAST, NONE, Scores
from thawkit.ops.pairwise.common import full_precision
from thawkit.ops.pairwise.gpu_panels import panel_height, product
from thawkit.ops.pairwise.reference.distances import centre
from thawkit.ops.pairwise.rows import unit_rows

_WIDTH = 1 << 16  # rows of the gallery at a time, so that many queries share a panel
_SMALLEST_GROUP, _LARGEST_GROUP = 8, 128


class Epilogues(NamedTuple):
    """What runs on panels; ``kernels/top_k.py`` says what each takes."""

    best_of_groups: Callable[[Scores, int, Tensor], None]
    keys_of_groups: Callable[[Scores, int, Tensor | None, Tensor], None]


def top_k(
    epilogues: Epilogues,
    queries: Tensor,
    gallery: Tensor,
    k: int,
    similarity: str,
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The k largest similarities of each query (float32) and their indices (int64)."""
    with full_precision(queries):
        q, g = _prepared(queries, gallery, similarity)
        norms = [x.square().sum(1) for x in (q, g)] if similarity == "euclidean" else None
        kept = torch.full((q.shape[0], k), NONE, dtype=torch.int64, device=q.device)
        width = max(1, min(g.shape[0], _WIDTH))
        height = panel_height(q.shape[0], width)
        for top in range(0, q.shape[0], height):
            here = slice(top, top + height)
            for first in range(0, g.shape[0], width):
                there = slice(first, first + width)
                scores = Scores(
                    product(q[here], g[there].t()),
                    first,
                    None if excluded is None else excluded[here].contiguous(),
                    *((None, None) if norms is None else (norms[0][here], norms[1][there])),
                )
                found = torch.cat((kept[here], _candidates(epilogues, scores, k)), dim=1)
                kept[here] = found.topk(k, dim=1, sorted=False).values
        return _decoded(kept.sort(dim=1, descending=True).values)


def _prepared(queries: Tensor, gallery: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """Return rows whose products are wanted; float32 where they are not those that came."""
    if similarity == "cosine":
        queries, gallery = (unit_rows(x.float(), True)[0] for x in (queries, gallery))
    if similarity == "euclidean":
        queries, gallery = queries.float(), gallery.float()
        middle = centre(gallery)
        queries, gallery = queries - middle, gallery - middle
    queries, gallery = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, gallery))
    return queries, gallery


def _group(columns: int, k: int) -> int:
    """Return how many columns make a group: so many that groups and the columns of k of them are fewest."""
    wanted = 1 << round(math.log2(max(columns / k, 1.0)) / 2)
    return min(max(wanted, _SMALLEST_GROUP), _LARGEST_GROUP)


def _candidates(epilogues: Epilogues, scores: Scores, k: int) -> Tensor:
    """Return keys of columns among which are the k best of each row."""
    rows, columns = scores.products.shape
    group = _group(columns, k)
    groups = -(-columns // group)
    keys = torch.empty(rows, groups, dtype=torch.int64, device=scores.products.device)
    chosen = None
    if 2 * k < groups:
        epilogues.best_of_groups(scores, group, keys)
        chosen, groups = keys.topk(k, dim=1, sorted=False).values, k
    keys = keys.new_empty(rows, groups * group)
    epilogues.keys_of_groups(scores, group, chosen, keys)
    return keys


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    order = (keys >> 32).to(torch.int32)
    values = (order ^ ((order >> 31) & LAST)).view(torch.float32)
    nothing = keys == NONE
    return values.masked_fill(nothing, -torch.inf), (LAST - (keys & LAST)).masked_fill(nothing, -1)
