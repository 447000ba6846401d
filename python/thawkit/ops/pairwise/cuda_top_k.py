"""Retrieval on CUDA without Triton: the epilogues in CUDA C++, which take what Triton's do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawkit.kernels.top_k_scores import Scores
from thawkit.ops._library import pointer, stream, takes_only
from thawkit.ops.pairwise import gpu_top_k

objection = takes_only("cuda")


def _panel(of: Scores) -> tuple[Any, ...]:
    """Return the fields of ``TopKPanel`` in csrc/cuda/kernels.h."""
    s = of.products
    extras = (pointer(x) for x in (of.excluded, of.norms, of.column_norms))
    return pointer(s), *s.shape, s.stride(0), of.first, *extras


def best_of_groups(scores: Scores, group: int, keys: Tensor) -> None:
    """Write the best key of each ``group`` of columns (R, groups); see :mod:`thawkit.kernels.top_k`.

    A group is a power of 2 from 4 to 128.
    """
    from thawkit import _C

    with torch.cuda.device(keys.device):
        _C.best_of_groups_cuda(_panel(scores), group, pointer(keys), keys.stride(0), stream())


def keys_of_groups(scores: Scores, group: int, groups: Tensor | None, keys: Tensor) -> None:
    """Write the keys of all columns of the groups whose keys are given; see :mod:`thawkit.kernels.top_k`."""
    from thawkit import _C

    with torch.cuda.device(keys.device):
        _C.keys_of_groups_cuda(
            _panel(scores),
            group,
            keys.shape[1] // group,
            pointer(groups),
            0 if groups is None else groups.stride(0),
            pointer(keys),
            keys.stride(0),
            stream(),
        )


_EPILOGUES = gpu_top_k.Epilogues(best_of_groups, keys_of_groups)


def top_k(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_top_k.top_k`."""
    return gpu_top_k.top_k(_EPILOGUES, *arguments)
