import numpy as np
import pytest
import torch

from thawkit.data import ImageDataset, Splits


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Networks this small gain nothing from threads, and on a busy machine lose a great deal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
