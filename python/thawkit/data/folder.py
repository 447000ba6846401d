"""Folders of images: class folders, or train/val/test folders of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thawkit.data.dataset import ImageDataset, Splits
from thawkit.data.files import SUFFIXES, check_images, image_files
from thawkit.data.npz import complete_splits
from thawkit.errors import ThawkitError

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def load_folder(
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
) -> Splits:
    """Read ``root/<class>/...`` (split here, stratified) or ``root/{train,val,test}/<class>/...``.

    The folders are splits where all of them have a split's name: one class may be called ``train`` too.
    Where ``classes`` are given, images without class folders are taken as well, without labels.
    Every image is decoded once first, so that a damaged one is found now and not in the middle of training.

    Raises:
        ThawkitError: no images, fewer than 2 classes, an empty class, splits with different classes or beside
            other folders, or a damaged image (named).
    """
    parts = _split_folders(root) or {"train": root}
    sets = {split: _read(path, root.name, classes) for split, path in parts.items()}
    train_classes = sets["train"].classes
    for split, dataset in sets.items():
        if dataset.classes != train_classes:
            odd = sorted(set(dataset.classes) ^ set(train_classes))
            raise ThawkitError(
                f"{parts[split]}: its classes differ from those of {parts['train']}: {', '.join(odd)}"
            )
    check_images([path for dataset in sets.values() for path in dataset.images])
    return complete_splits(
        sets["train"], sets.get("val"), sets.get("test"), name=root.name, seed=seed, val=val, test=test
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, train first, or nothing where the folders are classes."""
    folders = _subfolders(root)
    found = {
        split: folder for split, names in _SPLIT_NAMES.items() for folder in folders if folder.name in names
    }
    others = [folder for folder in folders if folder not in found.values()]
    nested = [folder for folder in found.values() if _subfolders(folder)]
    if others and nested:
        raise ThawkitError(
            f"{root}: {nested[0].name!r} holds folders as a split does, but {others[0].name!r} beside it "
            "is no split; keep only train, val and test there, or only one folder a class"
        )
    if others or not found:
        return {}
    if "train" not in found:
        raise ThawkitError(f"{root}: it has {' and '.join(f.name for f in folders)}, but no train folder")
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read(folder: Path, name: str, unlabelled: Sequence[str] | None) -> ImageDataset:
    classes = [path.name for path in _subfolders(folder)]
    if not classes and unlabelled is not None:
        return ImageDataset(_images(folder), None, unlabelled, name)
    if len(classes) < 2:
        raise ThawkitError(
            f"{folder}: one folder a class is needed, at least 2; found {len(classes)}"
            + (f" ({classes[0]})" if classes else "")
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = _images(folder / class_name)
        paths += found
        labels += [label] * len(found)
    return ImageDataset(paths, labels, classes, name)


def _images(folder: Path) -> list[Path]:
    found = image_files(folder)
    if not found:
        raise ThawkitError(f"{folder}: no images in it (looked for {' '.join(sorted(SUFFIXES))})")
    return found
