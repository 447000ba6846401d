"""Digests of what cached features depend on: the frozen part of a model, and a data set."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import pickle
import stat
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitError, one_line

_SAMPLES = 16
_LONGEST_PATH, _MOST_FOLDERS = 4096, 8


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

    By its method ``fingerprint()``, or 🤗's ``_fingerprint``; else of its pickled form, and of the size and
    time of every file whose path stands in that, whole or beside a folder's; and of 16 samples' values, all
    of them where it is no larger. Files that it finds in another way are not seen to change.

    Args:
        dataset: of the map style.
        draw: gives a sample, the same at every call.

    Raises:
        ThawkitError: it cannot be pickled, or samples are not the same when drawn again.
    """
    count, files = len(dataset), []
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        return digest_of(count, own())
    if isinstance(getattr(dataset, "_fingerprint", None), str):
        pickled: Any = dataset._fingerprint  # of its transforms as well
    else:
        pickled, texts = _pickled(dataset)
        files = _files(texts)
    chosen = _some(count)
    samples = [_sample_digest(draw(i)) for i in chosen]
    if chosen and _sample_digest(draw(chosen[0])) != samples[0]:
        raise ThawkitError(
            "dataset: sample 0, drawn twice from the same seed, is not the same, so its random numbers come "
            "from elsewhere than torch, numpy and random; give it a method draw(index, view) that fixes them"
        )
    return digest_of(count, pickled, samples, files)


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


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=20)

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return len(content)


class _Pickler(pickle.Pickler):
    """Pickles tensors by their values, as their own form holds addresses, and notes what may be a path."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=4)
        self.texts: dict[str, None] = {}  # a set in order

    def persistent_id(self, value: Any) -> None:
        if isinstance(value, str):
            self._note(value)
        elif isinstance(value, os.PathLike):
            self._note(os.fsdecode(value))
        elif isinstance(value, np.ndarray) and value.dtype.kind == "U":
            for text in value.flat:
                self._note(str(text))

    def _note(self, text: str) -> None:
        if (os.sep in text or "." in text) and len(text) < _LONGEST_PATH and "\0" not in text:
            self.texts[text] = None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return str, (tensor_digest(value),)
        return NotImplemented


def _pickled(dataset: Any) -> tuple[str, list[str]]:
    digest = _Digest()
    pickler = _Pickler(digest)
    try:
        pickler.dump(dataset)
    except Exception as error:  # whatever the parts of a data set raise when they cannot be pickled
        raise ThawkitError(
            f"dataset: {type(dataset).__name__} cannot be pickled, which its fingerprint needs "
            f"({one_line(error)}); give key=, a text that changes whenever the data or their transforms do"
        ) from error
    return digest.hash.hexdigest(), list(pickler.texts)


def _files(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Size and time of the files among paths, and of those that a path names in a folder among them."""
    texts = list(texts)
    folders = ["", *(text for text in texts if os.sep in text and os.path.isdir(text))][:_MOST_FOLDERS]
    found = []
    for text in texts:
        for folder in folders:
            try:
                state = os.stat(os.path.join(folder, text))
            except OSError:
                continue
            if stat.S_ISREG(state.st_mode):
                found.append((state.st_size, state.st_mtime_ns))
                break
    return found
