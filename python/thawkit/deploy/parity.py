"""Does the ONNX graph give what torch gives? Compared on real images, at several sizes and batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from thawkit.errors import ThawkitError

if TYPE_CHECKING:
    from thawkit.data import ImageDataset

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

MAX_BATCH = 16
MAX_BATCH_PIXELS = 4_000_000
"""Keeps the float copy of a batch of photographs near 50 MB."""
PROBE_SIZES = ((97, 131), (131, 97), (480, 640), (64, 301))
"""(height, width) that some samples are stretched to: small, upright, a camera's, and a wide one."""


class ParityError(ThawkitError):
    """The ONNX model and the torch model disagree."""


@dataclass(frozen=True)
class Parity:
    """Agreement of onnxruntime with torch."""

    tolerance: float
    """Largest absolute difference of a logit that was allowed."""
    max_difference: float
    """Largest absolute difference of a logit that was found."""
    images: int
    """How many images were compared; the top-1 class is the same on all of them."""
    sizes: int
    """How many different image sizes those had."""
    largest_batch: int
    """Size of the largest batch; single images were compared too."""
    accuracy: float | None
    """Share of right top-1 classes among the samples, where they have labels."""


class Samples:
    """A data set or a list of tensors, seen as labelled images in the layout of the bundle's input."""

    def __init__(self, source: ImageDataset | Sequence[Tensor] | Tensor) -> None:
        self._source = list(source) if isinstance(source, Tensor) else source
        self.labels: NDArray[np.int64] | None = getattr(source, "labels", None)
        if len(source) == 0:
            raise ThawkitError("samples: at least one image is needed, got none")

    def __len__(self) -> int:
        return len(self._source)

    def pixels(self, index: int) -> Pixels:
        """Return image ``index`` as uint8 (H, W, 3)."""
        source = self._source
        image = source[index] if isinstance(source, Sequence) else source.image(index)
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            found = (
                f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            )
            raise ThawkitError(f"samples: image {index} must be a uint8 tensor (3, H, W), got {found}")
        return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())

    def spread(self, count: int) -> list[int]:
        """Return up to ``count`` indices, evenly spaced from the first image to the last."""
        return [int(i) for i in np.unique(np.linspace(0, len(self) - 1, count).round())]


def require_classes(argument: str, dataset: ImageDataset, classes: Sequence[str], owner: str) -> None:
    """Refuse labelled images of other classes than a model has: their labels would mean something else."""
    if dataset.labels is not None and tuple(dataset.classes) != tuple(classes):
        raise ThawkitError(
            f"{argument}: {dataset.name} has {_listed(dataset.classes)}, {owner} {_listed(classes)}"
        )


def _listed(classes: Sequence[str]) -> str:
    more = ", ..." if len(classes) > 8 else ""
    return f"{len(classes)} classes ({', '.join(classes[:8])}{more})"


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Stretch an image (H, W, 3) to (height, width, 3)."""
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def compare(
    samples: Samples,
    reference: Callable[[Pixels], Logits],
    candidate: Callable[[Pixels], Logits],
    tolerance: float,
) -> Parity:
    """Run both on every sample, and on some stretched to other sizes, alone and in batches.

    Args:
        samples: real images.
        reference: uint8 (N, H, W, 3) to logits (N, classes), by torch.
        candidate: the same by onnxruntime.
        tolerance: largest absolute difference allowed.

    Raises:
        ParityError: a logit differs by more than ``tolerance``, or a top-1 class differs. All images are run
            before, so that the message tells the largest difference and its image.
        ThawkitError: torch itself gives NaN or infinity.
    """
    worst, worst_image, moved, right, largest = 0.0, "", 0, 0, 0
    sizes: set[tuple[int, ...]] = set()
    images = 0
    for first, batch in (*_sample_batches(samples), *_probe_batches(samples)):
        want, got = reference(batch), candidate(batch)
        if not np.isfinite(want).all():
            raise ThawkitError("module gives NaN or infinite logits on some of samples")
        gaps = np.nan_to_num(np.abs(got - want), nan=np.inf, posinf=np.inf).max(axis=1)
        if gaps.max() > worst:
            worst = float(gaps.max())
            row = int(gaps.argmax())
            label = f"sample {first + row}" if first >= 0 else "a stretched sample"
            worst_image = f"{label} ({batch.shape[2]}x{batch.shape[1]} pixels, batch of {len(batch)})"
        moved += int((got.argmax(1) != want.argmax(1)).sum())
        if first >= 0 and samples.labels is not None:
            right += int((want.argmax(1) == samples.labels[first : first + len(batch)]).sum())
        images += len(batch)
        largest = max(largest, len(batch))
        sizes.add(batch.shape[1:3])
    if worst > tolerance or moved:
        raise ParityError(
            f"parity check failed: logits differ from torch by up to {worst:.1e} on {worst_image}, tolerance"
            f" {tolerance:.0e}; top-1 differs on {moved} of {images} images"
        )
    accuracy = None if samples.labels is None else right / len(samples)
    return Parity(tolerance, worst, images, len(sizes), largest, accuracy)


def _sample_batches(samples: Samples) -> Iterator[tuple[int, Pixels]]:
    """Yield (index of the first image, batch): neighbours of one size together, the first image alone."""
    batch: list[Pixels] = []
    start = 0
    for index in range(len(samples)):
        pixels = samples.pixels(index)
        full = len(batch) == MAX_BATCH or (len(batch) + 1) * pixels[..., 0].size > MAX_BATCH_PIXELS
        if batch and (index == 1 or full or pixels.shape != batch[0].shape):
            yield start, np.stack(batch)
            batch, start = [], index
        batch.append(pixels)
    yield start, np.stack(batch)


def _probe_batches(samples: Samples) -> Iterator[tuple[int, Pixels]]:
    """Yield (-1, batch) of samples stretched to each probe size: one alone, then three together."""
    chosen = [samples.pixels(index) for index in (samples.spread(3) * 3)[:3]]
    for height, width in PROBE_SIZES:
        batch = np.stack([resized(pixels, height, width) for pixels in chosen])
        yield -1, batch[:1]
        yield -1, batch
