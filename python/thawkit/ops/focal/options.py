"""Checks of the numbers that both forms of the focal loss take."""

from __future__ import annotations

from thawkit.errors import ThawkitError
from thawkit.ops import checks


def check(gamma: float, label_smoothing: float = 0.0) -> None:
    """Require numbers in range.

    Raises:
        ThawkitError: one is not.
    """
    checks.finite("gamma", gamma)
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    checks.finite("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ThawkitError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
