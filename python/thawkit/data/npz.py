"""``.npz`` files with MedMNIST's keys: ``train_images``, ``train_labels``, and the same for val and test."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thawkit.data.dataset import ImageDataset, Splits
from thawkit.data.split import stratified_split
from thawkit.errors import ThawkitError


def load_npz(
    path: Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
) -> Splits:
    """Read images and labels from ``path``; a missing val or test part is split off train, stratified.

    Class names come from ``classes``, else from an array ``classes`` in the file, else are "0", "1", ...

    Raises:
        ThawkitError: not a readable npz, no train part, or arrays that do not make labelled images.
    """
    arrays = _read(path)
    name = name or path.stem
    for key in ("train_images", "train_labels"):
        if key not in arrays:
            raise ThawkitError(
                f"{path}: no array {key!r} in it; it has {', '.join(sorted(arrays)) or 'none'}"
            )
    if classes is None:
        top = int(np.max(arrays["train_labels"], initial=0))
        classes = [str(c) for c in arrays.get("classes", range(top + 1))]
    if len(classes) < 2:
        raise ThawkitError(f"{path}: at least 2 classes are needed, found {len(classes)}")

    def part(split: str) -> ImageDataset | None:
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if images is None:
            return None
        if labels is None:
            raise ThawkitError(f"{path}: it has {split}_images but no {split}_labels")
        return ImageDataset(images, labels, classes, f"{name} {split}")

    train, validation, held_out = part("train"), part("val"), part("test")
    assert train is not None
    return complete_splits(train, validation, held_out, name=name, seed=seed, val=val, test=test)


def complete_splits(
    train: ImageDataset,
    validation: ImageDataset | None,
    held_out: ImageDataset | None,
    *,
    name: str,
    seed: int,
    val: float,
    test: float,
) -> Splits:
    """Take the missing parts from ``train``, stratified if it is labelled, and return the three."""
    if validation and held_out:
        return Splits(train, validation, held_out, train.classes, name)
    shares = {"val": 0.0 if validation else val, "test": 0.0 if held_out else test}
    fractions = (1 - shares["val"] - shares["test"], shares["val"], shares["test"])
    if fractions[0] <= 0 or min(fractions) < 0:
        raise ThawkitError(f"val and test must leave images to train on, got val={val}, test={test}")
    labels = np.zeros(len(train), np.int64) if train.labels is None else train.labels
    try:
        rows = stratified_split(labels, fractions, seed)
    except ThawkitError as error:
        raise ThawkitError(f"{name}: {error}") from None
    return Splits(
        train=train.subset(rows[0]),
        val=validation or train.subset(rows[1]),
        test=held_out or train.subset(rows[2]),
        classes=train.classes,
        name=name,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise ThawkitError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ThawkitError(f"cannot read {path} as .npz without pickles: {error}") from error
