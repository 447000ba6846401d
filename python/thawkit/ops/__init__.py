"""Operators: tensors and autograd over the compiled kernels, the Triton kernels and a plain reference.

One package a family: :mod:`~thawkit.ops.pairwise`, :mod:`~thawkit.ops.focal`, :mod:`~thawkit.ops.frozen`.
"""

from thawkit.ops import focal, frozen, pairwise
from thawkit.ops.dispatch import BACKENDS, MEMORY, unavailable, use_backend, use_memory

OPERATORS: dict[str, tuple[str, ...]] = {
    **pairwise.BACKENDS,
    **focal.BACKENDS,
    **frozen.BACKENDS,
}
"""The operators, and the backends that have a kernel for each beside the reference."""

__all__ = [
    "BACKENDS",
    "MEMORY",
    "OPERATORS",
    "focal",
    "frozen",
    "pairwise",
    "unavailable",
    "use_backend",
    "use_memory",
]
