"""The Triton kernels under proof, one module a file of ``kernels/``."""

from tests.gpu_proof.families import epilogue, focal, frozen, info_nce, margin, top_k
from tests.gpu_proof.triton_checks.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        info_nce.FAMILY,
        focal.FAMILY,
        frozen.FAMILY,
        epilogue.FAMILY,
        margin.FAMILY,
        top_k.FAMILY,
    )
}
