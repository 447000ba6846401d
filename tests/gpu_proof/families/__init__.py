"""The Triton kernels under proof, one module a file of ``kernels/``."""

from tests.gpu_proof.families import epilogue, focal, frozen, info_nce, margin, mmd, top_k
from tests.gpu_proof.triton_checks.family import Family

_MODULES = info_nce, focal, frozen, epilogue, margin, top_k, mmd
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
