"""Checkpoints that are used only when they are whole, however the run that wrote them ended.

🤗 Trainer writes a checkpoint file by file. A marker with every file's SHA-256, written last and in one
step, says that they all arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "complete.json"
WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that ``path`` holds either what it held before or all of the new text."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def mark_complete(checkpoint: Path) -> None:
    """Write the marker: the checkpoint's files and their hashes."""
    write_json(checkpoint / MARKER, {path.name: _sha256(path) for path in _contents(checkpoint)})


def problem(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        hashes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it was not written to its end"
    for name, digest in hashes.items():
        if not (checkpoint / name).is_file() or _sha256(checkpoint / name) != digest:
            return f"its file {name} is missing or damaged"
    return None


def step_of(checkpoint: Path) -> int:
    """Return the number of steps in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_usable(
    folder: Path, needed: Callable[[Path], int | None], say: Callable[[str], None]
) -> Path | None:
    """Return the newest whole checkpoint whose best predecessor is whole too, or None.

    Args:
        folder: holds ``checkpoint-<step>`` folders, or does not exist.
        needed: gives the step of the checkpoint that a checkpoint's run must end with, as known at that time.
        say: told about every checkpoint that is passed over.
    """
    found = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in found:
        reason = problem(checkpoint)
        best = None if reason else needed(checkpoint)
        if best is not None and best != step_of(checkpoint):
            reason = problem(folder / f"checkpoint-{best}")
            reason = reason and f"it needs checkpoint-{best}, and {reason}"
        if reason is None:
            return checkpoint
        say(f"passing over {checkpoint.name}: {reason}")
    return None


def prune(folder: Path, keep: set[int]) -> None:
    """Delete all checkpoints but those at the steps ``keep``, each marker first."""
    for checkpoint in folder.glob("checkpoint-*"):
        if step_of(checkpoint) not in keep:
            (checkpoint / MARKER).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _contents(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.is_file() and path.name != MARKER)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
