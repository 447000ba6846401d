"""Splits that keep the share of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thawkit.errors import ThawkitError


def stratified_split(labels: Any, fractions: Sequence[float], seed: int = 0) -> list[NDArray[np.int64]]:
    """Deal the rows to ``len(fractions)`` parts so that every part has every class in the same proportion.

    Within a class the counts are the fractions rounded by largest remainder, and every part with a positive
    fraction gets at least one row of the class.

    Args:
        labels: integers (N,).
        fractions: the parts' shares, each in [0, 1], adding up to 1.
        seed: the same seed gives the same split.

    Returns:
        One sorted int64 index array a part; together they hold each row exactly once.

    Raises:
        ThawkitError: the fractions do not add up to 1, or a class has fewer rows than there are parts.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ThawkitError(f"fractions must be non-negative and add up to 1, got {list(fractions)}")
    if seed < 0:
        raise ThawkitError(f"seed must be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    array = np.asarray(labels)
    for label in np.unique(array):
        rows = rng.permutation(np.flatnonzero(array == label))
        if len(rows) < np.count_nonzero(shares):
            raise ThawkitError(
                f"class {label} has {len(rows)} images, too few to put one in each of "
                f"{np.count_nonzero(shares)} splits"
            )
        ends = np.cumsum(_apportion(len(rows), shares))
        for part, chunk in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.append(chunk)
    return [
        np.sort(np.concatenate(part)).astype(np.int64) if part else np.empty(0, np.int64) for part in parts
    ]


def _apportion(count: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    exact = shares * count
    sizes = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(sizes - exact, kind="stable")
    sizes[by_remainder[: count - sizes.sum()]] += 1
    for empty in np.flatnonzero((sizes == 0) & (shares > 0)):
        sizes[sizes.argmax()] -= 1
        sizes[empty] += 1
    return sizes
