"""Writing a bundle folder whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thawkit.deploy import runner
from thawkit.errors import ThawkitError


def check_free(output: Path, *, overwrite: bool) -> None:
    """Make sure that a bundle may be written at ``output``.

    Raises:
        ThawkitError: a file lies there, or a folder with contents and not ``overwrite``, or one that is no
            bundle: those are never replaced.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise ThawkitError(f"output: {output} is a file, a folder is needed")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ThawkitError(f"output: {output} already exists; overwrite (--overwrite) replaces a bundle")
    try:
        is_bundle = runner.read_json(output / "manifest.json")["format"] == runner.FORMAT
    except (runner.BundleError, KeyError, TypeError):
        is_bundle = False
    if not is_bundle:
        raise ThawkitError(f"output: {output} holds something that is not a bundle, and is not replaced")


@contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a fresh folder beside ``output`` that takes its place at the end, or is gone after an exception.

    Raises:
        ThawkitError: ``output`` is taken (see :func:`check_free`), or writing fails, as on a full disk.
    """
    output = output.resolve()
    check_free(output, overwrite=overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise ThawkitError(f"output: cannot write in {output.parent}: {error.strerror}") from error
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        _publish(work, output, overwrite=overwrite)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise ThawkitError(f"output: cannot write {output}: {error.strerror or error}") from error
        raise


def _publish(work: Path, output: Path, *, overwrite: bool) -> None:
    check_free(output, overwrite=overwrite)
    if not output.exists() or not any(output.iterdir()):
        os.replace(work, output)
        return
    old = work.with_suffix(".old")
    os.replace(output, old)
    try:
        os.replace(work, output)
    except OSError:
        os.replace(old, output)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
