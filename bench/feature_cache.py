"""An epoch of head-only training: on images, and on features that the frozen prefix has computed once.

Each variant trains the head of the same network for one epoch (forward, cross-entropy, backward, SGD) over
the same images in memory, shuffled, and the epochs take turns:

images    ``thawkit.freeze`` alone: every epoch runs the whole network
cached    ``FeatureCache``, float32: the epoch reads the features from the file and runs the head
half      the same, float16

``fill_s`` is what the first pass over a view costs in all: finding the cut, fingerprints, prefix, writing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from common import Report, parser, timed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import thawkit
from thawkit.frozen import FeatureCache

MODELS: dict[str, Callable[[], nn.Module]] = {
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "vit_b_16": lambda: torchvision.models.vit_b_16(num_classes=10),
}
BATCH = 32


def epoch(model: nn.Module, network: nn.Module, data: torch.utils.data.Dataset) -> Callable[[], None]:
    """One epoch of ``model``'s head, where ``network`` takes what ``data`` gives."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)

    def run() -> None:
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()

    return run


def compare(report: Report, name: str, images: int, size: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    data = TensorDataset(torch.randn(images, 3, size, size), torch.randint(0, 10, (images,)))
    thawkit.freeze(model, "head", example=data.tensors[0][:1])
    model.train()
    variants, fill, disk = {"images": epoch(model, model, data)}, {}, {}
    for variant, dtype in {"cached": "float32", "half": "float16"}.items():
        start = time.perf_counter()
        cached = FeatureCache(folder, dtype=dtype, batch_size=BATCH).dataset(model, data)
        fill[variant] = round(time.perf_counter() - start, 2)
        disk[variant] = cached.file.path.stat().st_size
        variants[variant] = epoch(model, cached.model, cached)
    seconds = timed(variants, report.options.rounds, limit_s=120)
    report.row(
        model=name,
        images=images,
        size=size,
        epoch_s={variant: round(s, 4) for variant, s in seconds.items()},
        times_faster={variant: round(seconds["images"] / seconds[variant], 1) for variant in fill},
        fill_s=fill,
        file_bytes=disk,
    )


def main() -> None:
    options: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args()
    report = Report("feature_cache", options, notes={"batch": BATCH})
    images = 64 if options.quick else 256
    try:
        for name, sizes in {
            "tf_efficientnet_lite0": (64, 224),
            "resnet50": (224,),
            "vit_b_16": (224,),
        }.items():
            for size in sizes[: 1 if options.quick else None]:
                folder = Path(tempfile.mkdtemp(prefix="thawkit-features-"))
                try:
                    compare(report, name, images, size, folder)
                finally:
                    shutil.rmtree(folder)
    finally:
        report.write()


if __name__ == "__main__":
    main()
