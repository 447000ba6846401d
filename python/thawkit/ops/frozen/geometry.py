"""How a convolution slides."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """Stride, zero padding and dilation of each size, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
