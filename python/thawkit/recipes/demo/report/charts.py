"""Charts as inline SVG text: no dependency, no script, colours from the page's style sheet.

Every chart has a title and a description for screen readers, labelled axes, and survives having nothing or
one value to show. Colours come from CSS classes (``s0``, ``s1``, ...), so that a page can be light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line: points (x, y); those that are not finite are left out.

    Attributes:
        name: in the legend.
        points: (x, y) pairs, x rising.
        style: number of the colour, from 0.
        marked: x of a point to ring, or None.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    marked: float | None = None


def percent(value: float) -> str:
    """Return 0.25 as "25 %"."""
    return f"{100 * value:.4g} %"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high].

    A range of no width, or one that is not finite, is widened to something that can be drawn.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    low, high = min(low, high), max(low, high)
    if high == low:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    y_format: Format = "{:g}".format,
    size: tuple[int, int] = (460, 250),
) -> str:
    """Return lines over whole-numbered x (epochs), with a legend, as one ``<svg>``."""
    width, height = size
    right, top, bottom = 12, 30, 42
    kept = [(s, [(x, y) for x, y in s.points if math.isfinite(x) and math.isfinite(y)]) for s in series]
    points = [point for _, own in kept for point in own]
    if not points:
        return _frame(title, description, size, _nothing(size))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    marks = ticks(min(ys), max(ys))
    left = 30 + 7 * max(len(y_format(mark)) for mark in marks)
    x0, x1 = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, min(xs) + 1)

    def at_x(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def at_y(y: float) -> float:
        return height - bottom - (y - marks[0]) / (marks[-1] - marks[0]) * (height - top - bottom)

    parts = [*_legend([(s.name, s.style) for s, _ in kept], left)]
    for mark in marks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" '
            f'y1="{at_y(mark):.1f}" y2="{at_y(mark):.1f}"/>'
        )
        parts.append(_text(left - 6, at_y(mark) + 4, y_format(mark), "end"))
    stride = max(1, math.ceil(len(set(xs)) / 10))
    parts += [_text(at_x(x), height - bottom + 16, f"{x:g}", "middle") for x in sorted(set(xs))[::stride]]
    parts.append(_text((left + width - right) / 2, height - 6, x_label, "middle", "label"))
    parts.append(_turned(12, (top + height - bottom) / 2, y_label))
    for one, own in kept:
        parts += _line(one, [(at_x(x), at_y(y)) for x, y in own], [x for x, _ in own])
    return _frame(title, description, size, parts)


def pairs_chart(
    rows: Sequence[tuple[str, float, float]],
    *,
    title: str,
    description: str,
    names: tuple[str, str],
    x_label: str,
    width: int = 460,
) -> str:
    """Return one line a row from a first to a second share (0 to 1): before and after, as one ``<svg>``."""
    left, right, top, pitch = 64, 60, 34, 34
    usable = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    size = (width, top + pitch * len(usable) + 44)
    if not usable:
        return _frame(title, description, size, _nothing(size))

    def at(value: float) -> float:
        return left + min(1.0, max(0.0, value)) * (width - left - right)

    floor = top + pitch * len(usable)
    parts = [*_legend(list(zip(names, (0, 1), strict=True)), left)]
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{at(mark):.1f}" x2="{at(mark):.1f}" y1="{top}" y2="{floor}"/>')
        parts.append(_text(at(mark), floor + 16, percent(mark), "middle"))
    parts.append(_text((left + width - right) / 2, floor + 36, x_label, "middle", "label"))
    for index, (label, before, after) in enumerate(usable):
        y = top + pitch * (index + 0.5)
        parts.append(_text(left - 10, y + 4, label, "end"))
        parts.append(f'<line class="bridge" x1="{at(before):.1f}" x2="{at(after):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="s0 dot" cx="{at(before):.1f}" cy="{y}" r="6"/>')
        parts.append(f'<circle class="s1 dot" cx="{at(after):.1f}" cy="{y}" r="6"/>')
        parts.append(_text(width - right + 8, y + 4, f"{100 * (after - before):+.1f}", "start", "strong"))
    return _frame(title, description, size, parts)


def bars_chart(
    rows: Sequence[tuple[str, float]],
    *,
    title: str,
    description: str,
    value_format: Format = "{:g}".format,
    size: tuple[int, int] = (460, 26),
) -> str:
    """Return horizontal bars from 0, each with its value beside it, as one ``<svg>``.

    ``size`` is the width of the chart and the height of one bar's row.
    """
    width, pitch = size
    left, right = 240, 64
    size = (width, pitch * max(1, len(rows)) + 12)
    if not rows:
        return _frame(title, description, size, _nothing(size))
    finite = [value for _, value in rows if math.isfinite(value)]
    largest = max([value for value in finite if value > 0], default=1.0)
    parts = []
    for index, (label, value) in enumerate(rows):
        y = 6 + pitch * index
        share = max(0.0, value) / largest if math.isfinite(value) else 0.0
        length = share * (width - left - right)
        parts.append(_text(left - 8, y + 17, label, "end"))
        parts.append(f'<rect class="s0" x="{left}" y="{y + 4}" width="{length:.1f}" height="18" rx="3"/>')
        parts.append(_text(left + length + 8, y + 17, value_format(value), "start"))
    return _frame(title, description, size, parts)


def _line(series: Series, places: Sequence[tuple[float, float]], xs: Sequence[float]) -> Iterator[str]:
    style = f"s{series.style}"
    if len(places) > 1:
        yield f'<polyline class="{style} line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    for (x, y), value in zip(places, xs, strict=True):
        yield f'<circle class="{style} dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        if value == series.marked:
            yield f'<circle class="{style} ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'


def _legend(entries: Sequence[tuple[str, int]], left: float) -> Iterator[str]:
    x = left
    for name, style in entries:
        yield f'<circle class="s{style} dot" cx="{x + 5:.0f}" cy="13" r="5"/>'
        yield _text(x + 15, 17, name, "start")
        x += 34 + 7.5 * len(name)


def _frame(title: str, description: str, size: tuple[int, int], parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {size[0]} {size[1]}" '
        f'aria-label="{escape(f"{title}. {description}")}"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _nothing(size: tuple[int, int]) -> list[str]:
    return [_text(size[0] / 2, size[1] / 2, "nothing to show", "middle")]


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _turned(x: float, y: float, text: str) -> str:
    return (
        f'<text class="label" text-anchor="middle" transform="translate({x:.1f} {y:.1f}) rotate(-90)">'
        f"{escape(text)}</text>"
    )
