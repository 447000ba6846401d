"""Partially-frozen training."""

from __future__ import annotations

from thawkit.frozen.structure import find_head

__all__ = ["find_head"]
