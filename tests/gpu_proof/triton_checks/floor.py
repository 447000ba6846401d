"""Rung 5: from counted bytes, operations and exponentials to the least time a kernel can take.

Predicted, never measured: no GPU ran. A floor has no latency, no imperfect overlap and no instructions but
those counted, and assumes that each resource runs at its peak.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.gpu_proof.triton_checks.memory import Traffic


class Part(NamedTuple):
    """Peak rates of one device, a second."""

    name: str
    memory: float  # bytes
    cache: float  # bytes from the second-level cache; assumed
    products: float  # operations of dense bfloat16 products
    operations: float  # of float32
    transcendentals: float


# memory and products as measured there with a copy and an 8192 x 8192 x 8192 product; the rest from the data
# sheet and the clock
H100 = Part(
    "H100",
    memory=3.0e12,
    cache=5.5e12,
    products=7.9e14,
    operations=6.69e13,
    transcendentals=132 * 16 * 1.755e9,
)


class Floor(NamedTuple):
    """What bounds a kernel, in seconds."""

    memory: float
    cache: float
    products: float
    operations: float
    transcendentals: float

    @property
    def bound(self) -> str:
        """Name of the resource that takes longest."""
        return max(self._asdict(), key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The floor: all resources at once, each at its peak."""
        return max(self)


def facts(traffic: Traffic, elements: int, part: Part = H100) -> dict[str, float]:
    """Return what the ladder tells of a launch: numbers by element, and the floor of 10^9 of them."""
    return {
        "bytes": round(traffic.unique / elements, 3),
        "flops": round((traffic.flops + traffic.operations) / elements, 1),
        "transcendentals": round(traffic.transcendentals / elements, 3),
        "floor_ms": round(floor(traffic, part).seconds / elements * 1e12, 2),
    }


def floor(traffic: Traffic, part: Part = H100) -> Floor:
    """Return the predicted floor of what the interpreter counted."""
    return Floor(
        memory=traffic.unique / part.memory,
        cache=(traffic.loaded + traffic.stored) / part.cache,
        products=traffic.flops / part.products,
        operations=traffic.operations / part.operations,
        transcendentals=traffic.transcendentals / part.transcendentals,
    )
