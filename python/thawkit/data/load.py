"""One door to all data: a built-in name, a folder, or an ``.npz`` file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from thawkit.data.builtin import BUILTIN
from thawkit.data.dataset import Splits
from thawkit.data.folder import load_folder
from thawkit.data.npz import load_npz
from thawkit.errors import ThawkitError


def load(
    spec: str | Path,
    *,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    classes: Sequence[str] | None = None,
) -> Splits:
    """Load images as training, validation and test sets.

    Args:
        spec: a name in :data:`thawkit.data.BUILTIN`; a folder of class folders, or of train, val and test
            folders of class folders; or an ``.npz`` with MedMNIST's keys.
        seed: of the stratified split, where one has to be made.
        val, test: the shares split off where ``spec`` does not come with those parts.
        classes: of the images in a folder without class folders, which come unlabelled; when not given, such
            a folder is refused.

    Raises:
        ThawkitError: one line that says what is wrong with ``spec`` or with which file in it.
    """
    origin = {"spec": str(spec), "seed": seed, "val": val, "test": test}
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise ThawkitError(f"val and test must be above 0 and leave images to train on, got {val} and {test}")
    if spec in BUILTIN:
        return replace(BUILTIN[str(spec)](seed, val, test), origin=origin)
    path = Path(spec).expanduser()
    origin["spec"] = str(path.resolve())
    if path.is_dir():
        return replace(
            load_folder(path.resolve(), classes=classes, seed=seed, val=val, test=test), origin=origin
        )
    if path.suffix == ".npz":
        return replace(load_npz(path, seed=seed, val=val, test=test), origin=origin)
    if path.exists():
        raise ThawkitError(
            f"data {str(spec)!r} is a file; a folder of class folders or an .npz file is needed"
        )
    close = difflib.get_close_matches(str(spec), BUILTIN, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ThawkitError(
        f"data {str(spec)!r}: no such folder or file, and no built-in set ({', '.join(BUILTIN)}){hint}"
    )
