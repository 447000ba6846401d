"""The settings of a training run that are not the model's, the data's or the method's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from thawkit.choices import DEVICES, KEEPS, MONITORS, PRECISIONS, PROFILES, SCHEDULERS
from thawkit.errors import ThawkitError


@dataclass(frozen=True)
class TuneConfig:
    """How long, how fast and on what to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step (with a target: as many again from there).
        learning_rate: AdamW's, at its peak.
        weight_decay: AdamW's, for weight matrices and filters; biases and norms get none.
        warmup: share of all steps in which the learning rate rises from 0.
        scheduler: ``cosine`` or ``linear`` to 0, or ``constant``.
        patience: stop after this many epochs without a better ``monitor``; None never stops early.
        monitor: validation metric that decides which epoch is the best.
        keep: the weights a run ends with: of the ``best`` epoch or of the ``last``.
        seed: of the order, the augmentation and dropout. The same seed gives the same run again on a CPU with
            the same number of threads.
        augment: a profile of :class:`thawkit.data.Augment`.
        train: what trains, a policy of :func:`thawkit.freeze` or a schedule such as ``head@0,last:2@3``, of
            which the epochs count from 0.
        precision: ``fp32``, or automatic mixed precision in ``bf16`` or ``fp16``.
        device: ``auto`` takes CUDA if there is one.
        clip: largest norm of the gradient; 0 for no clipping.
        workers: processes that load images; 0 loads in the main process.

    Raises:
        ThawkitError: a value out of range, named.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    scheduler: str = "cosine"
    patience: int | None = None
    monitor: str = "balanced_accuracy"
    keep: str = "best"
    seed: int = 0
    augment: str = "standard"
    train: str = "head"
    precision: str = "fp32"
    device: str = "auto"
    clip: float = 1.0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("clip", "workers"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _require(0 < self.learning_rate < math.inf, "learning_rate", "above 0, finite", self.learning_rate)
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more, finite", self.weight_decay)
        _require(0 <= self.seed < 2**32, "seed", f"from 0 to {2**32 - 1}", self.seed)  # numpy's limit
        _require(0 <= self.warmup < 1, "warmup", "a share in [0, 1)", self.warmup)
        _require(self.patience is None or self.patience > 0, "patience", "None or above 0", self.patience)
        choices = {
            "scheduler": tuple(SCHEDULERS),
            "monitor": MONITORS,
            "keep": KEEPS,
            "augment": PROFILES,
            "precision": PRECISIONS,
            "device": DEVICES,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            _require(value in allowed, name, f"one of {', '.join(allowed)}", repr(value))
        if self.patience is not None and self.keep == "last":
            raise ThawkitError(
                "patience stops at the best epoch, keep='last' wants the last one: use one of them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ThawkitError(f"{name} must be {expected}, got {value}")
