"""Folders of images: class folders, or train/val/test folders of class folders."""

from __future__ import annotations

from pathlib import Path

from thawkit.data.dataset import ImageDataset, Splits
from thawkit.data.files import SUFFIXES, check_images, image_files
from thawkit.data.npz import complete_splits
from thawkit.errors import ThawkitError

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def load_folder(root: Path, *, seed: int = 0, val: float = 0.15, test: float = 0.15) -> Splits:
    """Read ``root/<class>/...`` (split here, stratified) or ``root/{train,val,test}/<class>/...``.

    Every image is decoded once first, so that a damaged one is found now and not in the middle of training.

    Raises:
        ThawkitError: no images, fewer than 2 classes, an empty class, splits with different classes, or a
            damaged image (named).
    """
    parts = {split: _split_folder(root, names) for split, names in _SPLIT_NAMES.items()}
    if parts["train"] is None:
        parts = {"train": root, "val": None, "test": None}
    sets = {split: _class_folders(path, root.name) for split, path in parts.items() if path is not None}
    classes = sets["train"].classes
    for split, dataset in sets.items():
        if dataset.classes != classes:
            odd = sorted(set(dataset.classes) ^ set(classes))
            raise ThawkitError(
                f"{parts[split]}: its classes differ from those of {parts['train']}: {', '.join(odd)}"
            )
    check_images([path for dataset in sets.values() for path in dataset.images])
    return complete_splits(
        sets["train"], sets.get("val"), sets.get("test"), name=root.name, seed=seed, val=val, test=test
    )


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_folders(folder: Path, name: str) -> ImageDataset:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise ThawkitError(
            f"{folder}: one folder a class is needed, at least 2; found {len(classes)}"
            + (f" ({classes[0]})" if classes else "")
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = image_files(folder / class_name)
        if not found:
            raise ThawkitError(
                f"{folder / class_name}: no images in it (looked for {' '.join(sorted(SUFFIXES))})"
            )
        paths += found
        labels += [label] * len(found)
    return ImageDataset(paths, labels, classes, name)
