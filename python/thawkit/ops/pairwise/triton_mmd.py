"""MMD in Triton: tiles of cuBLAS products, one epilogue kernel on each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thawkit.ops._library import dtype_objection
from thawkit.ops.pairwise import gpu_mmd

objection = dtype_objection


def _epilogues() -> gpu_mmd.Epilogues:
    from thawkit.kernels import mmd as epilogue

    return gpu_mmd.Epilogues(epilogue.programs, epilogue.tile, epilogue.values, epilogue.count_digits)


def mmd(*arguments: Any) -> list[Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.mmd`."""
    return gpu_mmd.mmd(_epilogues(), *arguments)


def permutation_sums(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.permutation_sums`."""
    return gpu_mmd.permutation_sums(_epilogues(), *arguments)


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`thawkit.ops.pairwise.gpu_mmd.median_squared_distance`."""
    return gpu_mmd.median_squared_distance(_epilogues(), x, y)
