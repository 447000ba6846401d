import numpy as np
import pytest

from thawkit.data import ImageDataset, Splits


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """For every module of the package."""


def blobs(count, seed):
    """Three classes told apart by where the bright patch is, under noise that makes some of them hard."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 160, (count, 12, 12))
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4, 3:9] += 40
    return ImageDataset(images.astype(np.uint8), labels, ["top", "middle", "bottom"], "blobs")


@pytest.fixture(scope="session")
def splits():
    train, val, test = blobs(72, 0), blobs(45, 1), blobs(45, 2)
    return Splits(train, val, test, train.classes, "blobs")
