"""Plain-text tables of bytes."""

from __future__ import annotations

from collections.abc import Sequence


def in_words(size: int | None) -> str:
    """``12.3 MiB``; an empty string for None."""
    if size is None:
        return ""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB" if size else "0"


def listed(names: Sequence[str], most: int) -> str:
    """``a, b, c and 2 more``, at most ``most`` of them."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of equal length of the cells of a table, the first ``left`` columns flush left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in columns)
        for line in lines
        for columns in [list(enumerate(zip(line, widths, strict=True)))]
    ]
