"""What the demo promises, checked on its own result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thawkit.recipes.demo import settings as fixed

COMPARED = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}


@dataclass(frozen=True)
class Check:
    """One promise: its name, whether it was kept, and the numbers in a sentence."""

    name: str
    passed: bool
    text: str


def checks(result: dict[str, Any]) -> list[Check]:
    """Return the three checks of a whole result."""
    return [_beats_probe(result["xray"]), _adapts(result["digits"]), _agrees(result["bundle"])]


def _beats_probe(xray: dict[str, Any]) -> Check:
    probe, tuned = xray["probe"]["test"], xray["tuned"]["test"]
    words = [f"{title} {probe[name]:.3f} to {tuned[name]:.3f}" for name, title in COMPARED.items()]
    return Check(
        "Fine-tuning beats the linear probe",
        all(tuned[name] > probe[name] for name in COMPARED),
        f"on {tuned['count']} test X-rays, probe to fine-tuned: {', '.join(words)}",
    )


def _adapts(digits: dict[str, Any]) -> Check:
    gain = 100 * digits["mean"]["gain"]
    each = ", ".join(f"{100 * row['gain']:+.1f}" for row in digits["seeds"])
    return Check(
        f"DAN gains {fixed.DAN_POINTS:g} points or more on the target digits",
        gain >= fixed.DAN_POINTS,
        f"{gain:+.1f} points of accuracy without target labels, mean of {len(digits['seeds'])} seeds "
        f"({each})",
    )


def _agrees(bundle: dict[str, Any]) -> Check:
    other = bundle["elsewhere"]
    return Check(
        "The bundle gives what torch gives",
        other["max_difference"] <= fixed.PARITY and other["same_top1"] == other["images"],
        f"logits within {other['max_difference']:.1e} (allowed: {fixed.PARITY:.0e}), top-1 the same on "
        f"{other['same_top1']} of {other['images']} test images, run in a process of its own",
    )
