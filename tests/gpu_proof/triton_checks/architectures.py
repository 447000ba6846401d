"""What the architectures that kernels are compiled for allow, from NVIDIA's CUDA programming guide."""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """Limits of one multiprocessor, and peak rates of one part that has it."""

    threads: int
    blocks: int
    shared: int  # bytes a multiprocessor
    shared_a_block: int
    tensor_core: str  # opcode of its products of half precision


ARCHITECTURES = {
    80: Architecture(2048, 32, 164 << 10, 163 << 10, "HMMA"),
    87: Architecture(1536, 16, 164 << 10, 163 << 10, "HMMA"),
    89: Architecture(1536, 24, 100 << 10, 99 << 10, "HMMA"),
    90: Architecture(2048, 32, 228 << 10, 227 << 10, "HGMMA"),
    100: Architecture(2048, 32, 228 << 10, 227 << 10, "UTCHMMA"),
    120: Architecture(1536, 24, 100 << 10, 99 << 10, "HMMA"),
}
_REGISTERS = 65536
_REGISTERS_AT_ONCE = 256  # a warp gets multiples of this
_RESERVED = 1024  # bytes of shared memory that the system takes for each block


def blocks_per_multiprocessor(architecture: int, registers: int, warps: int, shared: int) -> int:
    """Return how many blocks fit, 0 where the shared memory of one is too much."""
    limits = ARCHITECTURES[architecture]
    if shared > limits.shared_a_block:
        return 0
    a_warp = -(-registers * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    return min(
        limits.threads // (32 * warps),
        limits.blocks,
        _REGISTERS // a_warp // warps,
        limits.shared // (shared + _RESERVED),
    )
