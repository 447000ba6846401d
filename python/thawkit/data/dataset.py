"""What the rest of thawkit sees of people's images: a map-style data set, and three of them as a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from thawkit.data.files import read_image
from thawkit.errors import ThawkitError


class ImageDataset(Dataset):
    """Images with class labels, held as one array or read from files when asked for.

    Args:
        images: uint8 array (N, H, W) or (N, H, W, 3), or a sequence of N image files.
        labels: N class indices in [0, len(classes)), or None for unlabelled images.
        classes: the class names, in the order of the model's outputs.
        name: how messages and reports call this set.

    Raises:
        ThawkitError: wrong shape or dtype, another number of labels than of images, a label out of range.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Sequence[str | Path],
        labels: Any | None,
        classes: Sequence[str],
        name: str = "images",
    ) -> None:
        self.name = name
        self.classes = tuple(str(c) for c in classes)
        self.images: NDArray[np.uint8] | list[Path]
        if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
            self.images = _checked_images(images, name)
        else:
            self.images = [Path(path) for path in images]
        self.labels = None if labels is None else _checked_labels(labels, len(self), self.classes, name)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Return one image as a uint8 tensor (3, H, W); grey images are repeated over the channels."""
        if isinstance(self.images, list):
            return read_image(self.images[index])
        pixels = torch.from_numpy(np.array(self.images[index]))
        return pixels.expand(3, *pixels.shape) if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (image (3, H, W) uint8, label), with label -1 where there are none."""
        return self.image(index), -1 if self.labels is None else int(self.labels[index])

    def subset(self, indices: Any) -> ImageDataset:
        """Return the images at ``indices`` (any integer sequence), in that order, sharing the files."""
        rows = np.asarray(indices, dtype=np.int64)
        images = [self.images[i] for i in rows] if isinstance(self.images, list) else self.images[rows]
        labels = None if self.labels is None else self.labels[rows]
        return ImageDataset(images, labels, self.classes, self.name)

    def without_labels(self) -> ImageDataset:
        """Return the same images with the labels gone, for methods that must not see them."""
        return ImageDataset(self.images, None, self.classes, self.name)

    def counts(self) -> NDArray[np.int64]:
        """Return how many images each class has, int64 (len(classes),).

        Raises:
            ThawkitError: the set has no labels.
        """
        if self.labels is None:
            raise ThawkitError(f"{self.name}: labels are needed here, but this data set has none")
        return np.bincount(self.labels, minlength=len(self.classes))

    def fingerprint(self) -> str:
        """Return a SHA-256 over the classes, the labels and the pixels (for files: names and contents)."""
        digest = hashlib.sha256(repr(self.classes).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        if isinstance(self.images, list):
            for path in self.images:
                digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        else:
            digest.update(repr(self.images.shape).encode())
            digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images of one data set.

    ``origin`` holds the arguments of :func:`thawkit.data.load` when that made the splits, so that a saved run
    can load the same data again.
    """

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    name: str
    origin: dict[str, Any] | None = None

    def fingerprint(self) -> str:
        """Return a SHA-256 over the three parts."""
        parts = (self.train, self.val, self.test)
        return hashlib.sha256("".join(part.fingerprint() for part in parts).encode()).hexdigest()


def _checked_images(images: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ThawkitError(
            f"{name}: images must be uint8 (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    return images


def _checked_labels(labels: Any, count: int, classes: tuple[str, ...], name: str) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ThawkitError(
            f"{name}: labels must be integers (N,), one class an image; got {array.dtype} {array.shape}"
        )
    if len(array) != count:
        raise ThawkitError(f"{name}: {count} images but {len(array)} labels")
    array = array.astype(np.int64)
    if count and not 0 <= array.min() <= array.max() < len(classes):
        wrong = array[(array < 0) | (array >= len(classes))][0]
        raise ThawkitError(
            f"{name}: label {wrong} is out of range, {len(classes)} classes have 0 to {len(classes) - 1}"
        )
    return array
