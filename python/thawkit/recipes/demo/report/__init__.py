"""The page: ``demo.json`` in, one HTML file out that loads nothing from anywhere.

``template.html`` holds the words. ``{{key|format}}`` in it stands for a value of ``demo.json``, and
``[[name]]`` for a piece that a function in this package makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

from thawkit.recipes.demo.report import closing, digits, xrays
from thawkit.recipes.demo.report.page import Values


def render(result: dict[str, Any]) -> str:
    """Return the report of a demo's result as one self-contained page."""
    values = Values(result)
    page = re.sub(r"\[\[(\w+)\]\]", lambda hole: _PIECES[hole[1]](values), _resource("template.html"))
    return re.sub(r"\{\{([\w.]+)(?:\|(\w+))?\}\}", lambda hole: values(hole[1], hole[2] or "text"), page)


def verdict(result: dict[str, Any]) -> tuple[str, str]:
    """Return the page's one line, and its style: ``good``, ``bad`` or ``quick``."""
    promises = result["checks"][-1:] if result["quick"] else result["checks"]
    failed = [check["name"] for check in promises if not check["passed"]]
    if failed:
        return f"Failed: {'; '.join(failed)}", "bad"
    if result["quick"]:
        return "Quick form: every step ran, on too few images for the accuracies to mean anything", "quick"
    return f"All {len(promises)} checks passed", "good"


def _resource(name: str) -> str:
    return (files("thawkit.recipes.demo.report") / name).read_text(encoding="utf-8")


def _verdict(values: Values) -> str:
    line, style = verdict(values.values)
    return f'<p class="verdict {style}">{escape(line)}</p>'


def _checks(values: Values) -> str:
    items = ""
    found = values.get("checks")
    for number, check in enumerate(found):
        judged = not values.get("quick") or number == len(found) - 1
        style, mark = {(True, True): ("right", "✓"), (True, False): ("wrong", "✗")}.get(
            (judged, check["passed"]), ("open", "–")
        )
        text = values(f"checks.{number}.text")
        items += f'<li><i class="mark {style}">{mark}</i><p><b>{escape(check["name"])}</b>{text}</p></li>'
    return f'<ul class="checks">{items}</ul>'


_PIECES: dict[str, Callable[[Values], str]] = {
    "style": lambda _: _resource("style.css"),
    "verdict": _verdict,
    "checks": _checks,
    "scores": xrays.scores,
    "training_charts": xrays.training_charts,
    "confusions": xrays.confusions,
    "xray_samples": xrays.samples,
    "xray_mistakes": xrays.mistakes,
    "freeze_table": xrays.freeze_table,
    "digit_strips": digits.strips,
    "seed_table": digits.seed_table,
    "digit_charts": digits.charts,
    "digit_samples": digits.samples,
    "device_table": closing.device_table,
    "time_chart": closing.time_chart,
    "commands": closing.commands,
    "versions": closing.versions,
}
