"""The demo's output folder: made, or emptied when an earlier demo wrote it, and never anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from thawkit import output_folder
from thawkit.errors import ThawkitError

RESULT, REPORT, MARK = "demo.json", "report.html", ".thawkit-demo"
XRAY, DIGITS, BUNDLE = "xray-run", "digits", "bundle"
CONTENT = (RESULT, REPORT, MARK, XRAY, DIGITS, BUNDLE)


def prepare(output: str | Path) -> Path:
    """Return ``output`` as an empty folder that carries the demo's mark.

    Raises:
        ThawkitError: it is a file, or a folder with files that no demo wrote.
    """
    folder = Path(output)
    present = output_folder.names_in(folder)
    foreign = sorted(present - set(CONTENT)) if MARK in present else sorted(present)
    if foreign:
        raise ThawkitError(
            f"output {folder} holds files that no demo wrote ({foreign[0]}); choose another folder (--output)"
        )
    output_folder.make(folder)
    for name in present - {MARK}:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / MARK).write_text(
        "thawkit demo wrote this folder and replaces it when run again.\n", encoding="utf-8"
    )
    return folder


def write_result(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write ``result`` as ``demo.json``, and return it as it will be read from there."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return json.loads(text)
