"""Training on features that a frozen prefix has computed once: :class:`thawkit.FeatureCache` for a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from thawkit.data import EpochSampler, ImageDataset, TrainingView, collate_images
from thawkit.data.batching import Key
from thawkit.errors import ThawkitError
from thawkit.frozen import CachedDataset, FeatureCache
from thawkit.frozen.schedule import parse_schedule
from thawkit.select import Model
from thawkit.tune.config import TuneConfig
from thawkit.tune.evaluate import in_mode
from thawkit.tune.method import Method
from thawkit.tune.metrics import classification_metrics


def settings_for(
    cache: FeatureCache | str | Path | None, config: TuneConfig, method: Method
) -> FeatureCache | None:
    """Return the settings that a run takes: its batches and workers, and one view where nothing is random.

    Raises:
        ThawkitError: the method or the policy has no use of features kept for the whole run.
    """
    if cache is None:
        return None
    if method.uses_target:
        raise ThawkitError(
            f"cache: the method {type(method).__name__} trains on a target, which is not cached"
        )
    if len(parse_schedule(config.train)) > 1:
        raise ThawkitError(f"cache: expected one policy for all epochs, got train={config.train!r}")
    settings = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
    views = 1 if config.augment == "none" else settings.views
    return replace(settings, views=views, batch_size=config.batch_size, workers=config.workers)


class CachedRun:
    """The training and validation images of a run as features.

    Attributes:
        train: what an epoch goes over; view ``e % views`` is the augmentation of epoch ``e`` without a cache,
            for the first ``views`` epochs.
        words: where the model was cut, or why it was not.
    """

    def __init__(self, cache: FeatureCache, model: Model, view: TrainingView, val: ImageDataset) -> None:
        self.train = cache.dataset(model.module, _Training(view), collate=view.collate, split=_split_training)
        self._val: CachedDataset | None = None
        if self.train.cut is None:
            self.words = f"feature cache: none, training goes on as usual: {self.train.reason}"
            return
        self.words = f"feature cache: {self.train.file.path}, before {self.train.cut.at}"
        images = _Validation(val, view)
        self._val = replace(cache, views=1).dataset(model.module, images, collate=images.collate)

    @property
    def usable(self) -> bool:
        """Whether the model has a cut."""
        return self.train.cut is not None

    def loader(self, batch_size: int, seed: int, drop_last: bool) -> DataLoader[Any]:
        """Return batches of ``features`` and ``labels`` in the order that images would come in."""
        return DataLoader(
            _Rows(self.train),
            batch_size=batch_size,
            sampler=_Sampler(self.train, seed),
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
        )

    def validate(self, model: Model, val: ImageDataset, batch_size: int) -> dict[str, Any]:
        """Score the model on val's features, as :func:`thawkit.tune.evaluate` does on its images."""
        assert self._val is not None
        assert val.labels is not None
        with in_mode(model.module, training=False) as device, torch.no_grad():
            parts = []
            for start in range(0, len(val), batch_size):  # a DataLoader would draw a random number
                rows = range(start, min(start + batch_size, len(val)))
                features = default_collate([self._val[row][0] for row in rows])
                parts.append(self._val.model(_on(device, features)).float().cpu())
        return classification_metrics(torch.cat(parts).numpy(), val.labels)


def _on(device: torch.device, features: Any) -> Any:
    return features.to(device) if isinstance(features, Tensor) else [f.to(device) for f in features]


def _split_training(batch: Any) -> tuple[Any, dict[str, Any]]:
    return batch["pixel_values"], {"labels": batch["labels"]}


class _Training(Dataset[Any]):
    """Training images, of which view ``v`` is augmented as in epoch ``v``."""

    def __init__(self, view: TrainingView) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> Any:
        return self.draw(index, 0)

    def draw(self, index: int, view: int) -> Any:
        return self.view[(view, index, -1)]

    def fingerprint(self) -> str:
        augment = self.view.augment
        parts = self.view.source.fingerprint(), self.view.preprocess, augment.transform, augment.seed
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Validation(Dataset[Any]):
    def __init__(self, images: ImageDataset, view: TrainingView) -> None:
        self.images, self.preprocess = images, view.preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index]

    def collate(self, items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*items, strict=True)
        return collate_images(images, self.preprocess), torch.tensor(labels)

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.images.fingerprint(), self.preprocess)).encode()).hexdigest()


class _Rows(Dataset[Any]):
    """Features by :class:`EpochSampler` keys."""

    def __init__(self, cached: CachedDataset) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, key: Key) -> Any:
        return self.cached[key[1]]


class _Sampler(EpochSampler):
    """Moves to the view of an epoch before it begins."""

    def __init__(self, cached: CachedDataset, seed: int) -> None:
        super().__init__(len(cached), 0, seed)
        self.cached = cached

    def __iter__(self) -> Iterator[Key]:
        self.cached.set_epoch(self.epoch)
        yield from super().__iter__()
