"""Folders that people name for output: what lies there, and making them."""

from __future__ import annotations

from pathlib import Path

from thawkit.errors import ThawkitError


def names_in(folder: Path) -> set[str]:
    """Return the names of what lies in ``folder``, nothing where there is none.

    Raises:
        ThawkitError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ThawkitError(f"output {folder} is a file; a folder is needed")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def make(folder: Path) -> None:
    """Make ``folder``, and those that it lies in.

    Raises:
        ThawkitError: the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ThawkitError(f"output {folder} cannot be made: {error.strerror or error}") from error
