"""The Triton kernels under proof, one module a file of ``kernels/``."""

import pytest

from tests.gpu_proof.families import (
    channels,
    epilogue,
    focal,
    frozen,
    info_nce,
    margin,
    max_pool,
    mmd,
    quantize,
    top_k,
)
from tests.gpu_proof.triton_checks.family import Family

_MODULES = info_nce, focal, epilogue, margin, top_k, mmd, frozen, max_pool, quantize, channels
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}

# as parameters of a test, whose cases share nothing: each goes to the process that has time
EACH = [
    pytest.param(family, id=name, marks=pytest.mark.xdist_group(name)) for name, family in FAMILIES.items()
]
