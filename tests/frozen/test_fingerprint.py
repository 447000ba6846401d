"""What the digest of a data set sees to change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from tests.frozen.test_cache import Images
from thawkit.frozen.cache import _Samples
from thawkit.frozen.fingerprint import data_digest

COUNT = 50  # of which 16 are looked at


def _digest(data: Any) -> str:
    return data_digest(data, _Samples(data, 0).first)


class Files(Dataset):
    """Arrays in files, found by what ``where`` makes of their paths."""

    def __init__(self, paths: list[Path], where: Callable[[list[Path]], Any]) -> None:
        self.files = where(paths)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> torch.Tensor:
        files = self.files
        path = Path(files["folder"], files["names"][index]) if isinstance(files, dict) else files[index]
        return torch.from_numpy(np.load(str(path)))


KINDS: dict[str, Callable[[list[Path]], Any]] = {
    "texts": lambda paths: [str(path) for path in paths],
    "paths": list,
    "array of texts": lambda paths: np.array([str(path) for path in paths]),
    "array of objects": lambda paths: np.array([str(path) for path in paths], dtype=object),
    "folder and names": lambda paths: {"folder": str(paths[0].parent), "names": [p.name for p in paths]},
    "folder and names, as paths": lambda paths: {"folder": paths[0].parent, "names": [p.name for p in paths]},
}
AROUND: dict[str, Callable[[Dataset], Dataset]] = {
    "alone": lambda data: data,
    "in a concatenation": lambda data: ConcatDataset([data, data]),
    "in part": lambda data: Subset(ConcatDataset([data, Images()]), range(COUNT)),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_is_seen(kind: str, around: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.npy" for index in range(COUNT)]
    for index, path in enumerate(paths):
        np.save(path, np.full(3, index))
    data = AROUND[around](Files(paths, KINDS[kind]))
    before = _digest(data)
    assert _digest(data) == before
    np.save(paths[1], np.full(4, 1))  # which is not one of those looked at
    larger = _digest(data)
    assert larger != before
    np.save(paths[1], np.full(4, 2))
    later = paths[1].stat().st_mtime_ns + 10**9  # a clock that ticks slowly
    os.utime(paths[1], ns=(later, later))
    assert _digest(data) not in (before, larger)


def test_data_of_huggingface_go_by_their_own_fingerprint() -> None:
    first, second = Images(augment=False), Images(augment=False)
    first._fingerprint, second._fingerprint = "a", "a"
    first._format_kwargs, second._format_kwargs = {"transform": lambda x: x}, {"transform": lambda x: x}
    assert _digest(first) == _digest(second)
    second._fingerprint = "b"
    assert _digest(first) != _digest(second)
