"""The data sets that come with thawkit or with one of its extras."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files

import numpy as np

from thawkit.data.dataset import ImageDataset, Splits
from thawkit.data.npz import load_npz
from thawkit.data.split import stratified_split
from thawkit.errors import MissingDependencyError

_DIGITS = tuple("0123456789")


def _asset(name: str, classes: tuple[str, ...]) -> Splits:
    with as_file(files("thawkit.data") / "assets" / f"{name}.npz") as path:
        return load_npz(path, name=name, classes=classes)


def _pneumoniamnist(seed: int, val: float, test: float) -> Splits:
    return _asset("pneumoniamnist", ("normal", "pneumonia"))


def _mnist(seed: int, val: float, test: float) -> Splits:
    return _asset("mnist", _DIGITS)


def _optdigits(seed: int, val: float, test: float) -> Splits:
    """1,797 handwritten digits, 8×8, from scikit-learn (UCI Optical Recognition of Handwritten Digits)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            'optdigits comes with scikit-learn: pip install "thawkit[demo]"', name="sklearn"
        ) from error
    digits = load_digits()
    whole = ImageDataset(
        np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target, _DIGITS, "optdigits"
    )
    train, validation, held_out = (
        whole.subset(rows) for rows in stratified_split(whole.labels, (1 - val - test, val, test), seed)
    )
    return Splits(train, validation, held_out, _DIGITS, "optdigits")


BUILTIN: dict[str, Callable[[int, float, float], Splits]] = {
    "pneumoniamnist": _pneumoniamnist,
    "mnist": _mnist,
    "optdigits": _optdigits,
}
"""Loaders by name, called with (seed, val, test); sets with official splits keep those."""
