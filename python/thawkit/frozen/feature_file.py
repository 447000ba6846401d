"""The file that cached features lie in: rows of one size, each with a checksum and a mark that it is there.

    magic, length and text of the header (JSON), its checksum      padded to a page
    one byte a row: 1 once the row is written                      padded to a page
    rows: the fields one after another, a CRC-32, padding

A file is made whole and empty, with its space on the disk, and then gets its name; so who opens it finds
either nothing or all of it. A row is written and forced to the disk before it is marked. Rows are written by
whoever has claimed them, and claims are file locks, which the system takes back from a process that dies.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thawkit.errors import ThawkitError

SUFFIX = ".features"
_MAGIC = b"thawkit features 1\n"
_PAGE = 4096
_ALIGNMENT = 16


@dataclass(frozen=True)
class Field:
    """One part of a row: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in a row."""
        return math.prod(self.shape) * self.dtype.itemsize


class FeatureFile:
    """An open file of features; get one by :func:`open_file`. It may be pickled and forked."""

    def __init__(self, path: Path, fields: Sequence[Field], rows: int, start: int) -> None:
        self.path, self.fields, self.rows = path, tuple(fields), rows
        self._offsets, self._payload, self._stride = _layout(self.fields)
        self._parts = [
            (slice(at, at + field.nbytes), field.dtype, field.shape)
            for at, field in zip(self._offsets, self.fields, strict=True)
        ]
        self._marks_at, self._rows_at = start, start + _padded(rows, _PAGE)
        self._open()

    def _open(self) -> None:
        try:
            self._file: IO[bytes] = self.path.open("r+b")
        except OSError as error:
            raise ThawkitError(f"{self.path}: {error.strerror}") from error
        self._check_length()
        fcntl.flock(self._file, fcntl.LOCK_SH)  # in use: not to be evicted
        self._claims = self.path.with_suffix(".claims").open("ab")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._marks = np.frombuffer(self._map, np.uint8, self.rows, self._marks_at)

    def _check_length(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        expected = self._rows_at + self.rows * self._stride
        if size != expected:
            raise ThawkitError(f"{self.path} is damaged: {size} bytes long, expected {expected}; delete it")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.path, self.fields, self.rows, self._marks_at

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # to open it in this process

    def done(self) -> NDArray[np.bool_]:
        """Which rows are there, (rows,)."""
        self._check_length()
        if self.rows and self._marks.max() > 1:
            raise ThawkitError(f"{self.path} is damaged: its marks are neither 0 nor 1; delete it")
        return self._marks == 1

    def read(self, row: int) -> list[Tensor]:
        """Return the fields of a row.

        Raises:
            ThawkitError: it is not there, or damaged.
        """
        self._check_length()  # a part that is gone would end the process at the first touch
        if self._marks[row] != 1:
            raise ThawkitError(f"{self.path} has no row {row} yet; set_epoch computes the view of an epoch")
        start = self._rows_at + row * self._stride
        content = bytearray(self._map[start : start + self._payload + 4])
        if int.from_bytes(content[self._payload :], "little") != _checksum(content[: self._payload], row):
            raise ThawkitError(f"{self.path} is damaged: row {row} has another checksum; delete it")
        whole = torch.frombuffer(content, dtype=torch.uint8)
        return [whole[part].view(dtype).view(shape) for part, dtype, shape in self._parts]

    def write(self, rows: Sequence[int], values: Sequence[Tensor]) -> None:
        """Write rows and then mark them.

        Args:
            rows: numbers, (B,).
            values: a tensor (B, \\*shape) for each field.

        Raises:
            ThawkitError: the system refuses, as when the disk is full.
        """
        content = np.zeros((len(rows), self._stride), np.uint8)
        for at, field, value in zip(self._offsets, self.fields, values, strict=True):
            if value.dtype != field.dtype or value.shape != (len(rows), *field.shape):
                raise ThawkitError(
                    f"features: expected {field.dtype} {(len(rows), *field.shape)}, got {value.dtype} "
                    f"{tuple(value.shape)}"
                )
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            content[:, at : at + field.nbytes] = flat.view(len(rows), field.nbytes).numpy()
        try:
            for row, line in zip(rows, content, strict=True):
                checksum = _checksum(line[: self._payload], row).to_bytes(4, "little")
                line[self._payload : self._payload + 4] = np.frombuffer(checksum, np.uint8)
                self._put(line.tobytes(), self._rows_at + row * self._stride)
            os.fsync(self._file.fileno())
            for row in rows:
                self._put(b"\1", self._marks_at + row)
        except OSError as error:
            raise ThawkitError(f"{self.path} cannot be written: {error.strerror}") from error

    def _put(self, content: bytes, at: int) -> None:
        while content:
            written = os.pwrite(self._file.fileno(), content, at)
            content, at = content[written:], at + written

    def claim(self, chunk: int, *, wait: bool) -> bool:
        """Keep other processes from computing a chunk of rows; False if one does, unless to ``wait``."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, chunk)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, chunk: int) -> None:
        """End a claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, chunk)


def open_file(
    folder: Path,
    key: str,
    description: dict[str, Any],
    fields: Sequence[Field],
    rows: int,
    max_bytes: int | None,
) -> FeatureFile:
    """Open the file of a key, or make it.

    Args:
        folder: made if need be.
        key: a digest of all that the rows depend on; the file's name.
        description: goes into the header, in words.
        fields, rows: what it holds.
        max_bytes: most that all files of the folder may take; those that nobody uses make room, the one that
            was used longest ago first. None for no limit.

    Raises:
        ThawkitError: the file is damaged, there is no room, or the system refuses.
    """
    header = _header({"key": key, "rows": rows, "fields": [_words(field) for field in fields], **description})
    stride = _layout(fields)[2]
    size = len(header) + _padded(rows, _PAGE) + rows * stride
    path = folder / f"{key}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not path.exists():
                _make_room(folder, size, max_bytes)
                _make(path, header, size)
            elif max_bytes is not None and size > max_bytes:
                raise _no_room(size, max_bytes)
            _check_header(path, header, key)
            os.utime(path)
            return FeatureFile(path, fields, rows, len(header))
    except OSError as error:
        raise ThawkitError(f"cache folder {folder}: {error.strerror or error}") from error


def _make(path: Path, header: bytes, size: int) -> None:
    partial = path.with_name(f"{path.name}.partial")  # under the folder's lock it is nobody else's
    try:
        with partial.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ThawkitError(
            f"cache folder {path.parent}: no file of {size:,} bytes can be made: {error.strerror}"
        ) from error


def _check_header(path: Path, header: bytes, key: str) -> None:
    with path.open("rb") as file:
        found = file.read(len(header))
    if found != header:
        raise ThawkitError(f"{path} is damaged: its header is not that of {key}; delete it")


def _make_room(folder: Path, size: int, max_bytes: int | None) -> None:
    for left in folder.glob(f"*{SUFFIX}.partial"):  # by one who was killed
        left.unlink(missing_ok=True)
    if max_bytes is None:
        return
    if size > max_bytes:
        raise _no_room(size, max_bytes)
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total + size <= max_bytes:
            return
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            total -= path.stat().st_size
            path.unlink()
            path.with_suffix(".claims").unlink(missing_ok=True)
    if total + size > max_bytes:
        raise ThawkitError(
            f"max_bytes: the features take {size:,} bytes and files in use in {folder} {total:,}, together "
            f"more than {max_bytes:,}"
        )


def _no_room(size: int, max_bytes: int) -> ThawkitError:
    return ThawkitError(
        f"max_bytes: the features take {size:,} bytes, more than the {max_bytes:,} allowed; fewer views or "
        "dtype='float16' take less"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _header(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True).encode()
    whole = _MAGIC + len(text).to_bytes(8, "little") + text
    whole += zlib.crc32(whole).to_bytes(4, "little")
    return whole.ljust(_padded(len(whole), _PAGE), b"\0")


def _words(field: Field) -> list[Any]:
    return [str(field.dtype), *field.shape]


def _layout(fields: Sequence[Field]) -> tuple[list[int], int, int]:
    """Where fields begin in a row, where they end, and the bytes from one row to the next."""
    offsets, end = [], 0
    for field in fields:
        offsets.append(end)
        end = _padded(end + field.nbytes, _ALIGNMENT)
    return offsets, end, _padded(end + 4, _ALIGNMENT)


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


def _checksum(content: Any, row: int) -> int:
    """Of a row and its number, so that neither zeros nor another row pass."""
    return zlib.crc32(content, zlib.crc32(row.to_bytes(8, "little")))
