"""The Triton kernels under proof, one module a file of ``kernels/``."""

from tests.gpu_proof.families import (
    channels,
    epilogue,
    focal,
    frozen,
    fused,
    margin,
    max_pool,
    mmd,
    quantize,
    top_k,
)
from tests.gpu_proof.triton_checks.family import Family

_MODULES = fused, focal, epilogue, margin, top_k, mmd, frozen, max_pool, quantize, channels
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
