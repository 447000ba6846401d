"""Pieces of HTML: numbers that say where they come from, tables, picture cards, confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100 * value:.1f} %",
    "points": lambda value: f"{100 * value:+.1f}",
    "three": lambda value: f"{value:.3f}",
    "count": lambda value: f"{value:,}",
    "times": lambda value: f"{value:.1f} times",
    "mb": lambda value: f"{value / 1e6:.1f} MB",
    "mib": lambda value: f"{value / 2**20:.1f} MiB",
    "ms": lambda value: f"{value:.2f} ms",
    "seconds": lambda value: f"{value:.0f} s",
    "tiny": lambda value: f"{value:.1e}",
    "text": str,
}
"""How a value of ``demo.json`` is written on the page, by name."""


class Values:
    """A demo's result, addressed by dotted keys: ``values("xray.tuned.test.accuracy", "three")``."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, key: str) -> Any:
        """Return the value at ``key``; parts that are whole numbers index lists."""
        found: Any = self.values
        for part in key.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found

    def __call__(self, key: str, form: str = "text") -> str:
        """Return the value as HTML that names its key and its format, so that a test can check it."""
        text = escape(FORMATS[form](self.get(key)))
        return f'<span data-key="{key}" data-as="{form}">{text}</span>'

    def row(self, prefix: str, names: Sequence[str], form: str) -> list[str]:
        """Return the values at ``prefix.name`` for every name."""
        return [self(f"{prefix}.{name}", form) for name in names]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, emphasis: int) -> str:
    """Return a table of ready HTML cells. A row's first cell is its heading; row ``emphasis`` stands out."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = ""
    for number, (heading, *cells) in enumerate(rows):
        style = ' class="emphasis"' if number == emphasis else ""
        inner = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr{style}><th scope="row">{heading}</th>{inner}</tr>'
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def confusion(values: Values, key: str, classes: Sequence[str], title: str) -> str:
    """Return the confusion matrix at ``key``, each cell shaded by its share of the row."""
    names = [escape(name) for name in classes]
    body = ""
    for true, row in enumerate(values.get(key)):
        cells = ""
        for called, number in enumerate(row):
            kind, share = "right" if true == called else "wrong", number / max(1, sum(row))
            count = values(f"{key}.{true}.{called}", "count")
            cells += (
                f'<td class="{kind}" style="--share:{share:.3f}"><b>{count}</b>'
                f"<small>{100 * share:.0f} %</small></td>"
            )
        body += f'<tr><th scope="row">{names[true]}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">said {name}</th>' for name in names)
    return (
        f'<table class="confusion"><caption>{escape(title)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def card(image: str, alt: str, lines: Sequence[str], *, right: bool) -> str:
    """Return a picture with lines of ready HTML below it, and a tick or a cross."""
    mark = '<i class="mark right">✓</i>' if right else '<i class="mark wrong">✗</i>'
    text = "".join(f"<p>{line}</p>" for line in lines)
    return (
        f'<figure class="card"><div>{mark}<img src="{image}" alt="{escape(alt)}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def captioned(picture: str, caption: str) -> str:
    """Return a chart with a line below it."""
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def pair(left: str, right: str) -> str:
    """Return two pieces side by side, or one above the other where the page is narrow."""
    return f'<div class="pair">{left}{right}</div>'
