"""Printing what holds people's paths and names: to rich ``[x]`` would be markup and ``:dog:`` an emoji."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Return a console that prints strings as they are."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)
