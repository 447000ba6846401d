import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from thawkit.data import ImageDataset, Preprocess
from thawkit.deploy import export

CLASSES = ("cat", "dog", "owl")


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    """A smooth picture with edges, uint8 (3, height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255 - pixels[0, 0]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def small_cnn(seed: int = 0) -> nn.Module:
    """Random weights, and running statistics that differ from the initial ones; logits of a few units."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, len(CLASSES)),
    )
    net(torch.randn(8, 3, 32, 32))
    nn.init.normal_(net[-1].weight, std=2.0)
    return net.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """For every module of the package."""


@pytest.fixture(scope="session")
def preprocess():
    return Preprocess(32, 36)


@pytest.fixture(scope="session")
def network():
    return small_cnn()


@pytest.fixture(scope="session")
def samples(tmp_path_factory, network, preprocess):
    """Five image files of three sizes, labelled as the network finds them but for the last."""
    folder = tmp_path_factory.mktemp("samples")
    files, labels = [], []
    for seed, (height, width) in enumerate([(40, 52), (40, 52), (40, 52), (90, 33), (28, 28)]):
        image = picture(height, width, seed)
        files.append(folder / f"{seed}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
        with torch.no_grad():
            labels.append(int(network(preprocess(image[None])).argmax()))
    labels[-1] = (labels[-1] + 1) % len(CLASSES)
    return ImageDataset(files, labels, CLASSES, "pets")


@pytest.fixture(scope="session")
def exported(tmp_path_factory, network, preprocess, samples):
    """(report, folder) of one bundle that the whole session reads and nobody changes."""
    folder = tmp_path_factory.mktemp("deploy") / "pets"
    return export(network, preprocess, CLASSES, folder, samples=samples), folder


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    """A copy of that bundle to damage."""
    return Path(shutil.copytree(exported[1], tmp_path / "pets"))


@pytest.fixture
def empty_cwd(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert os.listdir(folder) == []
