"""Who multiplies the panels of the CPU engine: its own microkernel, or torch's BLAS.

Either way the engine packs, runs its epilogues in cache and shares rows out to its threads; one product of a
panel's block is its own tiles or one call of torch's ``sgemm`` (float32: half precision is converted first).
The margin losses and ``top_k`` always multiply themselves, for they rely on equal rows having equal scores
wherever they lie.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from thawkit.errors import ThawkitError
from thawkit.ops._library import DTYPES, cpu_kernels
from thawkit.ops.pairwise import blas

GEMMS = ("own", "torch")
_TORCH_FLOAT32 = 2  # the compiled kernels' Operands, whose others are those of DTYPES


class Choice(NamedTuple):
    """Who multiplies, and why: a measurement, or what the user said."""

    gemm: str
    why: str


# By the kernels' instruction set. Time with torch's products over time with the engine's own: medians of
# interleaved runs of loss and gradients, InfoNCE 4096 x 128 and 2048 x 512 and CLIP 2048 x 512, float32, two
# threads, taken twice; AMD EPYC (family 25, model 17), torch 2.14.1 with MKL 2024.2. Not measured: Intel's
# CPUs, AMX (which only bfloat16 products use), MKL's AVX code where there is no FMA. On Arm torch has no MKL.
_MEASURED = {
    # MKL obeys no MKL_ENABLE_INSTRUCTIONS here and takes AVX2 with FMA, which the baseline kernels lack.
    # Under MKL_CBWR=COMPATIBLE it has SSE2 alone as they do: the least that it can do on another CPU.
    "baseline": Choice("torch", "measured: 0.43-0.46 of the own time, 0.94-1.02 where MKL has SSE2 alone"),
    "avx2": Choice("own", "measured: torch's takes 1.10-1.22 times as long"),
    "avx512": Choice("own", "measured: torch's takes 1.11-1.22 times as long"),
    # 2.17 times as long for bfloat16, which is multiplied as it is
    "avx512_bf16": Choice("own", "measured: torch's takes 1.10-1.32 times as long"),
}


@functools.cache
def measured_choice(isa: str) -> Choice:
    """Return the table's choice for an instruction set: torch's BLAS only where it can be had."""
    choice = _MEASURED.get(isa, Choice("own", "not measured"))
    if choice.gemm == "torch" and blas.problem():
        return Choice("own", f"torch's {blas.problem()}")
    return choice


def choose() -> Choice:
    """Return who multiplies now: what ``THAWKIT_GEMM`` says or else the table.

    Raises:
        ThawkitError: ``THAWKIT_GEMM`` is neither ``own`` nor ``torch``, or torch's BLAS cannot be had.
    """
    wanted = os.environ.get("THAWKIT_GEMM")
    if not wanted:
        return measured_choice(cpu_kernels().cpu_isa())
    if wanted not in GEMMS:
        raise ThawkitError(f"THAWKIT_GEMM must be one of {', '.join(GEMMS)}, got {wanted!r}")
    if wanted == "torch" and blas.problem():
        raise ThawkitError(f"THAWKIT_GEMM=torch {blas.problem()}")
    return Choice(wanted, f"THAWKIT_GEMM={wanted}")


def operands(dtype: torch.dtype) -> int:
    """Return what the kernels are to multiply, from its dtype."""
    return _TORCH_FLOAT32 if choose().gemm == "torch" else DTYPES[dtype]
