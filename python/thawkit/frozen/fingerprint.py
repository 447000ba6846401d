"""Digests of what cached features depend on: the frozen part of a model, and a data set."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitError, one_line

_SAMPLES = 16


def digest_of(*parts: Any) -> str:
    """A digest of what ``repr`` tells apart."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()


def tensor_digest(x: Tensor) -> str:
    """A digest of shape, dtype and values."""
    values = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(repr((x.dtype, x.shape)).encode() + values.tobytes(), digest_size=20).hexdigest()


def model_digest(state: Iterable[tuple[str, Any]]) -> str:
    """A digest of named tensors, classes (with their code) and settings."""
    return digest_of([(name, _described(value)) for name, value in state])


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, type):
        return value.__module__, value.__qualname__, _source(value)
    return value


@functools.cache
def _source(kind: Any) -> str:
    try:
        return digest_of(inspect.getsource(kind))
    except (OSError, TypeError):  # made in a shell, or by code
        return ""


def data_digest(dataset: Any, draw: Callable[[int], Any]) -> str:
    """A digest of a data set with its transforms.

    By its method ``fingerprint()``, or 🤗's ``_fingerprint``; else of its pickled form, of the size and time
    of the files in its ``samples`` (torchvision's folders), and of 16 samples' values, all of them where it
    is no larger.

    Args:
        dataset: of the map style.
        draw: gives a sample, the same at every call.

    Raises:
        ThawkitError: it cannot be pickled, or samples are not the same when drawn again.
    """
    count = len(dataset)
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        return digest_of(count, own())
    if isinstance(getattr(dataset, "_fingerprint", None), str):
        pickled: Any = dataset._fingerprint  # of its transforms as well
    else:
        pickled = _pickled(dataset)
    chosen = _some(count)
    samples = [_sample_digest(draw(i)) for i in chosen]
    if chosen and _sample_digest(draw(chosen[0])) != samples[0]:
        raise ThawkitError(
            "dataset: sample 0, drawn twice from the same seed, is not the same, so its random numbers come "
            "from elsewhere than torch, numpy and random; give it a method draw(index, view) that fixes them"
        )
    return digest_of(count, pickled, samples, _files(dataset))


def alike(count: int, draw: Callable[[int], Any], other: Callable[[int], Any]) -> bool:
    """Whether two ways to draw give the same of 16 samples of ``count``."""
    return all(_sample_digest(draw(i)) == _sample_digest(other(i)) for i in _some(count))


def _some(count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, max(count - 1, 0), min(count, _SAMPLES))})


def _sample_digest(sample: Any) -> list[Any]:
    found = []
    for leaf in tree_leaves(sample):
        if isinstance(leaf, (Tensor, np.ndarray)):
            found.append(tensor_digest(torch.as_tensor(leaf)))
        elif hasattr(leaf, "tobytes"):  # an image of Pillow, a number of numpy
            found.append(hashlib.blake2b(leaf.tobytes(), digest_size=20).hexdigest())
        else:
            found.append(repr(leaf))
    return found


def _files(dataset: Any) -> list[Any]:
    while hasattr(dataset, "dataset"):  # torch's Subset
        dataset = dataset.dataset
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, (list, tuple)):
        return []
    paths = [entry[0] if isinstance(entry, (list, tuple)) and entry else entry for entry in samples]
    stats = [Path(p).stat() for p in paths if isinstance(p, (str, Path)) and Path(p).is_file()]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=20)

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return len(content)


class _Pickler(pickle.Pickler):
    """Pickles tensors by their values: their own form holds addresses."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return str, (tensor_digest(value),)
        return NotImplemented


def _pickled(dataset: Any) -> str:
    digest = _Digest()
    try:
        _Pickler(digest, protocol=4).dump(dataset)
    except Exception as error:  # whatever the parts of a data set raise when they cannot be pickled
        raise ThawkitError(
            f"dataset: {type(dataset).__name__} cannot be pickled, which its fingerprint needs "
            f"({one_line(error)}); give key=, a text that changes whenever the data or their transforms do"
        ) from error
    return digest.hash.hexdigest()
