"""Is this bundle whole, and does it give on this machine what it gave at export?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thawkit.deploy import runner
from thawkit.deploy.bundle import Bundle, thawkit_errors
from thawkit.deploy.parity import require_classes
from thawkit.errors import ThawkitError

if TYPE_CHECKING:
    from thawkit.data import ImageDataset


@dataclass(frozen=True)
class DatasetFigures:
    """How a bundle does on labelled images, one image at a time."""

    name: str
    images: int
    accuracy: float
    """Share of images whose most probable class is the label."""
    p50_ms: float
    """Median time from pixels to logits, batch of one, in milliseconds."""
    p95_ms: float
    """95th percentile of the same."""


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found; that there is one means that every check passed."""

    folder: Path
    name: str
    classes: tuple[str, ...]
    files: int
    """Files checked against the manifest."""
    bytes: int
    """Their size together."""
    samples: int
    """Golden samples replayed."""
    max_difference: float
    """Largest absolute difference of a logit from torch's at export."""
    tolerance: float
    """Largest difference that was allowed."""
    dataset: DatasetFigures | None


def verify(
    bundle: str | Path, *, dataset: ImageDataset | None = None, device: str = "cpu", threads: int = 0
) -> VerifyReport:
    """Check a bundle and replay its samples; writes nothing.

    Args:
        bundle: the folder.
        dataset: labelled images with the bundle's classes, for accuracy and latency.
        device: ``cpu`` or ``cuda``.
        threads: of onnxruntime; 0 means one a core.

    Raises:
        ThawkitError: the manifest was edited; a file is missing, damaged or not listed; the model does not
            load; or the data set's classes are others.
        ParityError: a sample's logits are off by more than the tolerance in the manifest.
        MissingDependencyError: onnxruntime is not installed.
    """
    opened = Bundle(bundle, device=device, threads=threads)
    with thawkit_errors():
        runner.check_files(opened.folder, opened.manifest, unknown=True)
    samples, maximum, tolerance = opened.check_samples()
    files = opened.manifest["files"].values()
    return VerifyReport(
        folder=opened.folder,
        name=opened.name,
        classes=tuple(opened.classes),
        files=len(files),
        bytes=sum(entry["bytes"] for entry in files),
        samples=samples,
        max_difference=maximum,
        tolerance=tolerance,
        dataset=None if dataset is None else _measure(opened, dataset),
    )


def _measure(bundle: Bundle, dataset: ImageDataset) -> DatasetFigures:
    if dataset.labels is None or len(dataset) == 0:
        raise ThawkitError(f"dataset: {dataset.name} has no labelled images")
    require_classes("dataset", dataset, bundle.classes, "the bundle")
    right, times = 0, []
    for index in range(len(dataset)):
        pixels = np.ascontiguousarray(dataset.image(index).permute(1, 2, 0).numpy())[None]
        if index == 0:
            bundle.logits(pixels)  # the first run allocates
        start = time.perf_counter()
        logits = bundle.logits(pixels)
        times.append(1e3 * (time.perf_counter() - start))
        right += int(logits[0].argmax() == dataset.labels[index])
    p50, p95 = np.percentile(times, [50, 95])
    return DatasetFigures(dataset.name, len(dataset), right / len(dataset), float(p50), float(p95))
