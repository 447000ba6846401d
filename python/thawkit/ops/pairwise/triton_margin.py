"""The losses on distances with margins in Triton."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thawkit.ops._library import dtype_objection
from thawkit.ops.pairwise import gpu_margin

objection = dtype_objection


def margin_loss(*arguments: Any) -> tuple[Tensor | None, ...]:
    """See :func:`thawkit.ops.pairwise.gpu_margin.margin_loss`."""
    from thawkit.kernels import margin

    kernels = gpu_margin.Kernels(
        margin.distances,
        margin.all_triplets,
        margin.semihard_triplets,
        margin.hardest_triplet,
        margin.contrastive_pairs,
    )
    return gpu_margin.margin_loss(kernels, *arguments)
