"""From data sets to training batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from thawkit.data.augment import Augment
from thawkit.data.dataset import ImageDataset
from thawkit.data.preprocess import Preprocess

Key = tuple[int, int, int]
"""(epoch, row, target row); target row -1 where there is no target."""


class EpochSampler(Sampler[Key]):
    """Every row once an epoch in a new order, paired with rows of a second data set that cycle for ever.

    Nothing is drawn from a stateful generator, so epoch 7 has the same order whether or not epochs 0 to 6
    were run in this process.

    Args:
        rows: size of the data set that defines the epoch.
        target_rows: size of the second one, or 0.
        seed: changes all orders.
    """

    def __init__(self, rows: int, target_rows: int = 0, seed: int = 0) -> None:
        self.rows, self.target_rows, self.seed = rows, target_rows, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Key]:
        for position, row in enumerate(self._order(0, self.epoch, self.rows)):
            yield self.epoch, int(row), self._target_row(self.epoch * self.rows + position)

    def _target_row(self, position: int) -> int:
        if not self.target_rows:
            return -1
        cycle, place = divmod(position, self.target_rows)
        if cycle != getattr(self, "_cycle", None):
            self._cycle, self._cycle_order = cycle, self._order(1, cycle, self.target_rows)
        return int(self._cycle_order[place])

    def _order(self, stream: int, epoch: int, rows: int) -> np.ndarray:
        return np.random.default_rng((self.seed, stream, epoch)).permutation(rows)


class TrainingView(Dataset):
    """Augmented images by :class:`EpochSampler` keys, and :meth:`collate` to make network batches of them.

    Args:
        source: labelled images.
        preprocess: applied to whole batches where the images have one size, else image by image.
        augment: applied to every image before it.
        target: images whose labels, if any, are never read.
    """

    def __init__(
        self,
        source: ImageDataset,
        preprocess: Preprocess,
        augment: Augment,
        target: ImageDataset | None = None,
    ) -> None:
        self.source, self.target = source, target
        self.preprocess, self.augment = preprocess, augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, Tensor | None]:
        epoch, row, target_row = key
        image, label = self.source[row]
        image = self.augment(image, epoch, row)
        if self.target is None:
            return image, label, None
        return image, label, self.augment(self.target.image(target_row), epoch, target_row, stream=1)

    def collate(self, items: Sequence[tuple[Tensor, int, Tensor | None]]) -> dict[str, Tensor]:
        """Return ``pixel_values`` float32 (N, 3, S, S), ``labels`` int64 (N,), and with a target
        ``target_pixel_values`` float32 (N, 3, S, S).
        """
        images, labels, targets = zip(*items, strict=True)
        batch = {"pixel_values": collate_images(images, self.preprocess), "labels": torch.tensor(labels)}
        if self.target is not None:
            batch["target_pixel_values"] = collate_images(targets, self.preprocess)
        return batch


def collate_images(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Preprocess uint8 images (3, H, W), of one size or of many, into float32 (N, 3, S, S)."""
    device = preprocess.mean.device
    if len({image.shape for image in images}) == 1:
        return preprocess(torch.stack(list(images)).to(device))
    return torch.cat([preprocess(image[None].to(device)) for image in images])
