"""The names that settings can take, kept apart so that the command line offers them without torch."""

from __future__ import annotations

CRITERIA = ("cross_entropy", "focal")
MONITORS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss")
KEEPS = ("best", "last")
PROFILES = ("none", "standard", "digits")
"""For :class:`thawkit.data.Augment`: none; standard (flip, small affine, brightness); digits (no flip)."""
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Ours to 🤗 Trainer's."""
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
