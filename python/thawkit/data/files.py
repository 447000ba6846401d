"""Image files: which there are, reading one, and finding the damaged ones before training starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from thawkit.errors import ThawkitError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SHOW_PROGRESS_FROM = 500


def read_image(path: str | Path) -> Tensor:
    """Read one image file, turned upright by its EXIF tag, as a uint8 RGB tensor (3, H, W).

    Raises:
        ThawkitError: the file is missing, damaged, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as opened:
            _require_eight_bits(opened)
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise ThawkitError(f"cannot read image {path}: {_reason(error)}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def image_files(folder: Path) -> list[Path]:
    """Return the image files under ``folder`` at any depth, sorted by path, without hidden ones."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def check_images(paths: Sequence[Path]) -> None:
    """Decode every file once, several at a time, with a progress bar for large folders.

    Raises:
        ThawkitError: names the first damaged file and how many more there are.
    """
    damaged: list[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[str | None] = pool.map(_problem, paths)
        if len(paths) >= _SHOW_PROGRESS_FROM and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            results = track(
                results, "Checking images", len(paths), console=Console(stderr=True), transient=True
            )
        damaged.extend(problem for problem in results if problem)
    if damaged:
        more = f" (and {len(damaged) - 1} more damaged files)" if len(damaged) > 1 else ""
        raise ThawkitError(damaged[0] + more)


def _problem(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            _require_eight_bits(image)
            # A JPEG is decoded at an eighth of its size: every byte is still read, in less time.
            image.draft(image.mode, (1, 1))
            ImageOps.exif_transpose(image)
    except Exception as error:  # as in read_image
        return f"cannot read image {path}: {_reason(error)}"
    return None


def _require_eight_bits(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged at its start"
    return str(error) or type(error).__name__
