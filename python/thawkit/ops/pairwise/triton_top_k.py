"""The nearest rows of a gallery in Triton: two kernels on panels of cuBLAS products leave a few of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thawkit.ops._library import dtype_objection
from thawkit.ops.pairwise import gpu_top_k

objection = dtype_objection


def top_k(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_top_k.top_k`."""
    from thawkit.kernels import top_k as epilogue

    return gpu_top_k.top_k(gpu_top_k.Epilogues(epilogue.best_of_groups, epilogue.keys_of_groups), *arguments)
