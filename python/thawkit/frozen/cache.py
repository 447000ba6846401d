"""A frozen prefix run once for each sample: its outputs are kept in a file, and epochs cost the rest.

    cache = thawkit.FeatureCache("features", views=4)
    print(thawkit.freeze(model, "head", example=images, cache=cache))
    model.train()
    cached = cache.dataset(model, dataset)
    for epoch in range(20):
        cached.set_epoch(epoch)
        for features, target in DataLoader(cached, batch_size=64, shuffle=True):
            loss = criterion(cached.model(features), target)

Random transforms of the data set go on: ``views`` forms of each sample are drawn, each from a seed of its
own, and epoch ``e`` trains on view ``e % views``. With float32, training is what it would be without a cache
on the same views; a sample's features are those of the batch that the prefix ran it in, so where a kernel
rounds by the size of a batch or the place in it, the last bits follow that.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.data import DataLoader, Dataset, default_collate

import thawkit
from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen.cut import Cut, NoCutError, find_cut, training
from thawkit.frozen.feature_file import FeatureFile, Field, open_file
from thawkit.frozen.fingerprint import alike, data_digest, digest_of, model_digest
from thawkit.ops.frozen.packed import Fingerprint, version_of

DTYPES = {"float32": None, "float16": torch.float16}
_TOLERANCE = 1e-2  # of the largest magnitude: what was kept against what is computed now

Split = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True)
class FeatureCache:
    """Settings of a cache of features.

    Attributes:
        folder: holds one file for each combination of frozen weights, data, views and dtype. Whatever of
            these changes, another file is used; of files that the data set reads, size and time are looked
            at where their paths stand in it (:func:`~thawkit.frozen.fingerprint.data_digest`).
        views: how many forms of each sample are drawn, where the data set transforms them at random.
        dtype: ``float32`` keeps features as they are computed, bit by bit; ``float16`` rounds what is
            floating point to 11 bits and takes half the space.
        max_bytes: most that all files in ``folder`` may take. Files that nobody uses make room, the one used
            longest ago first; features that would take more by themselves are refused.
        seed: of the views.
        batch_size: samples that the prefix takes at a time.
        workers: processes that load samples for the prefix.

    Raises:
        ThawkitError: a value out of range, named.
    """

    folder: str | Path
    views: int = 1
    dtype: str = "float32"
    max_bytes: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("batch_size", 1), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ThawkitError(f"{name}: expected an integer of at least {least}, got {value!r}")
        if self.dtype not in DTYPES:
            raise ThawkitError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        most = self.max_bytes
        if most is not None and not (isinstance(most, (int, float)) and most >= 1):
            raise ThawkitError(f"max_bytes: expected None or a number of at least 1, got {most!r}")
        if not isinstance(self.folder, (str, os.PathLike)):
            raise ThawkitError(f"folder: expected a path, got {self.folder!r}")
        if Path(self.folder).is_file():
            raise ThawkitError(f"folder: expected a folder, {self.folder} is a file")

    def dataset(
        self,
        model: nn.Module,
        dataset: Any,
        *,
        key: str | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        split: Split | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> CachedDataset:
        """Wrap a data set, so that it gives features; those of the first view are computed now.

        Args:
            model: frozen, as it will be trained. Of a compiled one, the eager model inside is cut.
            dataset: of the map style. Its samples are tuples that begin with what the model takes, or
                mappings of the model's keyword arguments; keys that begin with ``label`` are not given to the
                model. What is beside must be numbers or tensors of one shape. A method ``draw(index, view)``,
                where it has one, gives the views; else samples are drawn with the generators of torch, numpy
                and random seeded by view and index.
            key: a text for the fingerprint of the data, to change whenever they or their transforms do; None
                computes one (:func:`thawkit.frozen.fingerprint.data_digest`).
            collate: makes a batch of a list of samples.
            split: takes a batch, or a sample, apart into what the model takes and what is beside, a tuple or
                a mapping.
            progress: called with the rows done and the rows of the view.

        Returns:
            The wrapped data set. Where the model has no cut, it gives the samples as they are and
            ``cached.model`` is the whole model; ``cached.reason`` says why.

        Raises:
            ThawkitError: the data have no fingerprint, are no such samples, or the file is damaged, too large
                or cannot be written.
        """
        model = getattr(model, "_orig_mod", model)  # of a model under torch.compile
        return CachedDataset(self, model, dataset, key, collate, split or _split, progress)


class Rest(nn.Module):
    """The model from the features on, sharing its parameters; without a cut, the whole model."""

    def __init__(self, model: nn.Module, cut: Cut | None) -> None:
        super().__init__()
        self.model, self.cut = model, cut
        self._device = next((p.device.type for p in model.parameters()), "cpu")
        self._autocast = torch.is_autocast_enabled(self._device)  # by which the features have their dtype
        self.digest = ""
        if cut is not None:
            self._take()
            self.digest = model_digest(cut.state())

    def forward(self, features: Any) -> Any:
        """Return the model's output.

        Args:
            features: a batch of :class:`CachedDataset`'s first items: a tensor (N, ...), or several.

        Raises:
            ThawkitError: what comes before the cut is not what it was, or trains; or it ran under autocast,
                and this does not.
        """
        if self.cut is None:
            if isinstance(features, Mapping):
                return self.model(**features)
            return self.model(*features) if isinstance(features, (tuple, list)) else self.model(features)
        self.check()
        if self._autocast and not torch.is_autocast_enabled(self._device):
            raise ThawkitError(
                "features: they were computed under autocast; run this model under autocast as well, or make "
                "the cached data set outside"
            )
        return self.cut.rest([features] if isinstance(features, Tensor) else list(features))

    def check(self, *, closely: bool = False) -> None:
        """Raise a :class:`ThawkitError` unless the prefix is what it was.

        By the tensors' flags and version counters; ``closely`` also by samples of their values and by the
        modules, for what no counter shows (``.data``, a module that was replaced).
        """
        if self.cut is None:
            return
        held = known = True
        for holder, name, t, version, address in self._marks:
            held &= holder.get(name) is t and not t.requires_grad
            known &= version_of(t) == version and t.data_ptr() == address
        if closely and held and known:
            known = (
                self._values.matches(*(t for _, _, t, *_ in self._marks)) and self._form == self._describe()
            )
        if held and not known:
            held = model_digest(self.cut.state()) == self.digest
            if held:
                self._take()
        if not held:
            raise ThawkitError(
                "model: what comes before the cut has changed or trains now, so the features are no longer "
                "its own; make the cached data set anew"
            )

    def _take(self) -> None:
        assert self.cut is not None
        self._marks = self.cut.marks()
        self._values = Fingerprint(*(t for _, _, t, *_ in self._marks))
        self._form = self._describe()

    def _describe(self) -> str:
        assert self.cut is not None
        return model_digest((name, part) for name, part in self.cut.state() if not isinstance(part, Tensor))


class CachedDataset(Dataset[Any]):
    """A data set of features, made by :meth:`FeatureCache.dataset`.

    Attributes:
        model: takes a batch of features and returns the model's output.
        cut: where the prefix ends; None where there is no such place.
        reason: why there is none; else empty.
        file: where the features lie.
    """

    def __init__(
        self,
        cache: FeatureCache,
        model: nn.Module,
        dataset: Any,
        key: str | None,
        collate: Callable[[list[Any]], Any],
        split: Split,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.cache, self.dataset = cache, dataset
        self._samples = _Samples(dataset, cache.seed)
        self._collate, self._split, self._progress = collate, split, progress
        self._view = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay alive see it
        self.cut, self.reason = None, ""
        self._kept = 0
        self._count = len(dataset)
        if not self._count:
            raise ThawkitError("dataset: expected at least one sample, it has none")
        example, beside = self._batch([self._samples.draw(0, i) for i in range(min(2, len(dataset)))])
        try:
            self.cut = find_cut(model, _moved(example, model))
        except NoCutError as error:
            self.reason = str(error)
        self.model = Rest(model, self.cut)
        if self.cut is None:
            return
        self._kept = len(self.cut.features)
        leaves, self._beside = tree_flatten(beside)
        fields = [Field(f.shape, self._stored(f.dtype)) for f in self.cut.features]
        fields += [Field(tuple(t.shape[1:]), t.dtype) for t in leaves]
        if cache.views > 1 and alike(len(dataset), self._samples.first, self._samples.second):
            warnings.warn(
                "thawkit.FeatureCache: two views of some samples are the same, so nothing seems random in "
                f"the data; views=1 gives as much as views={cache.views} for less",
                ThawkitWarning,
                stacklevel=3,
            )
        data = digest_of(key, len(dataset)) if key is not None else data_digest(dataset, self._samples.first)
        device = next((p.device.type for p in model.parameters()), "cpu")
        frozen = self.model.digest
        settings = (cache.views, cache.seed, cache.dtype, device, torch.get_float32_matmul_precision())
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        versions = thawkit.__version__, torch.__version__
        whole = digest_of(frozen, data, fields, settings, autocast, versions)
        description = {"model": frozen, "data": data, "views": cache.views, "cut": self.cut.at}
        self.file: FeatureFile = open_file(
            Path(cache.folder), whole, description, fields, cache.views * len(dataset), cache.max_bytes
        )
        self._compare()
        self.set_epoch(0)

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        wanted = DTYPES[self.cache.dtype]
        return dtype if wanted is None or not dtype.is_floating_point else wanted

    def __getstate__(self) -> dict[str, Any]:
        """A worker needs the file alone, or without a cut the samples."""
        state = dict(vars(self))
        kept = ("dataset", "_split") if self._kept else ()
        for name in ("model", "cut", "_samples", "_collate", "_progress", *kept):
            state[name] = None
        return state

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Return (features, \\*rest), or for a mapping ``{"features": features, **rest}``."""
        if not self._kept:
            features, beside = self._split(self.dataset[index])
        else:
            count = len(self)
            if not -count <= index < count:
                raise IndexError(index)
            values = self.file.read(int(self._view) * count + index % count)
            features = values[0] if self._kept == 1 else tuple(values[: self._kept])
            beside = tree_unflatten(values[self._kept :], self._beside)
        return {"features": features, **beside} if isinstance(beside, Mapping) else (features, *beside)

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch, and compute its features where they are not there yet.

        Call it before the epoch, in the process that trains. Several processes may do so at once: they share
        the work.
        """
        if self.cut is None:
            return
        view = epoch % self.cache.views
        self.model.check(closely=True)
        self._fill(view)
        self._view.fill_(view)

    def _fill(self, view: int) -> None:
        size, count = self.cache.batch_size, len(self)
        done = self.file.done()[view * count : (view + 1) * count]
        starts = [at for at in range(0, count, size) if not done[at : at + size].all()]
        for wait in (False, True):  # first what nobody is at, then what others have left behind
            if not starts:
                break
            chunks = _Chunks(self.file, starts, view, count, size, wait)
            loader = DataLoader(
                _View(self._samples, view),
                batch_sampler=chunks,
                collate_fn=list,
                num_workers=self.cache.workers,
            )
            try:
                with training(self.model.model):
                    for samples in loader:
                        self._compute(chunks.claimed[0], view * count, samples)
                        chunks.release()
            finally:
                chunks.release_all()
            starts = chunks.passed_over
        missing = count - int(self.file.done()[view * count : (view + 1) * count].sum())
        if missing:
            raise ThawkitError(
                f"{self.file.path}: {missing} rows are missing; the file was deleted meanwhile?"
            )

    def _compute(self, start: int, offset: int, samples: list[Any]) -> None:
        rows = [offset + start + i for i in range(len(samples))]
        values = self._values(samples)
        self.file.write(rows, values)
        if self._progress is not None:
            self._progress(min(start + len(rows), len(self)), len(self))

    def _values(self, samples: list[Any]) -> list[Tensor]:
        assert self.cut is not None
        example, beside = self._batch(samples)
        leaves, spec = tree_flatten(beside)
        if spec != self._beside:
            raise ThawkitError("dataset: the samples are not all built alike")
        kept = []
        with torch.enable_grad():
            computed = self.cut.prefix(_moved(example, self.model.model))
        for value in computed:
            stored = value.to(self._stored(value.dtype))
            if stored.dtype != value.dtype and bool((stored.isinf() & ~value.isinf()).any()):
                raise ThawkitError(
                    f"dtype: features of up to {value.abs().max().item():.3g} exceed float16; keep float32"
                )
            kept.append(stored)
        return [*kept, *leaves]

    def _batch(self, samples: list[Any]) -> tuple[Any, Any]:
        example, beside = self._split(self._collate(samples))
        leaves = tree_flatten(beside)[0]
        if not isinstance(beside, (tuple, Mapping)) or not all(
            isinstance(t, Tensor) and t.dim() and t.shape[0] == len(samples) for t in leaves
        ):
            raise ThawkitError(
                "dataset: expected numbers or tensors of one shape beside the model's input, got "
                f"{[type(leaf).__name__ for leaf in leaves]}"
            )
        return example, beside

    def _compare(self) -> None:
        """Compute one row that is there again: what no fingerprint sees would show.

        Raises:
            ThawkitError: it is another one.
        """
        found = np.flatnonzero(self.file.done())
        if not len(found):
            return
        view, index = divmod(int(found[0]), len(self))
        with training(self.model.model):
            now = self._values([self._samples.draw(view, index)])
        for kept, value in zip(self.file.read(int(found[0])), now, strict=True):
            x, y = kept.double(), value[0].detach().cpu().double()
            limit = _TOLERANCE * y.abs().max().item() if y.numel() else 0.0
            if x.shape != y.shape or not torch.allclose(x, y, rtol=0.0, atol=limit, equal_nan=True):
                raise ThawkitError(
                    f"{self.file.path} does not hold what the model makes of sample {index}: the data or the "
                    "code before the cut have changed in a way that no fingerprint shows; delete it"
                )


class _Samples:
    """Views of the samples of a data set."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def draw(self, view: int, index: int) -> Any:
        own = getattr(self.dataset, "draw", None)
        if callable(own):
            return own(index, view)
        with _seeded(self.seed, view, index):
            return self.dataset[index]

    def first(self, index: int) -> Any:
        return self.draw(0, index)

    def second(self, index: int) -> Any:
        return self.draw(1, index)


class _View(Dataset[Any]):
    def __init__(self, samples: _Samples, view: int) -> None:
        self.samples, self.view = samples, view

    def __getitem__(self, index: int) -> Any:
        return self.samples.draw(self.view, index)


class _Chunks:
    """Rows to compute, chunk by chunk, each claimed when it is handed out.

    ``claimed`` holds the beginnings of those handed out and not released, ``passed_over`` those that another
    process had claimed.
    """

    def __init__(
        self, file: FeatureFile, starts: list[int], view: int, count: int, size: int, wait: bool
    ) -> None:
        self._file, self._starts, self._offset = file, starts, view * count
        self._count, self._size, self._wait = count, size, wait
        self.claimed: list[int] = []
        self.passed_over: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            if not self._file.claim(self._offset + start, wait=self._wait):
                self.passed_over.append(start)
                continue
            self.claimed.append(start)
            rows = range(start, min(start + self._size, self._count))
            if self._file.done()[self._offset + start : self._offset + rows.stop].all():
                self._file.release(self._offset + self.claimed.pop())
                continue
            yield list(rows)

    def release(self) -> None:
        self._file.release(self._offset + self.claimed.pop(0))

    def release_all(self) -> None:
        while self.claimed:
            self.release()


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed the generators that transforms draw from, and put them back."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002  # theirs
    low, high = (int(x) for x in np.random.SeedSequence(numbers).generate_state(2, np.uint32))
    try:
        torch.default_generator.manual_seed(high << 31 | low >> 1)
        random.seed(high << 32 | low)
        np.random.seed(low)  # noqa: NPY002
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def _split(batch: Any) -> tuple[Any, Any]:
    """What a model takes of a batch, or of a sample, and what is beside."""
    if isinstance(batch, Mapping):
        names = [name for name in batch if not str(name).startswith("label")]
        return {name: batch[name] for name in names}, {k: v for k, v in batch.items() if k not in names}
    if isinstance(batch, (tuple, list)):
        return batch[0], tuple(batch[1:])
    return batch, ()


def _moved(example: Any, model: nn.Module) -> Any:
    device = next((p.device for p in model.parameters()), None)
    return example if device is None else tree_map_only(Tensor, lambda t: t.to(device), example)
