"""The X-ray half: a linear probe on frozen features, then partially frozen fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from thawkit.data import ImageDataset, Splits, load, stratified_split
from thawkit.frozen import freeze, unfreeze
from thawkit.recipes.demo import settings as fixed
from thawkit.recipes.demo.pictures import data_uri
from thawkit.recipes.demo.settings import Settings
from thawkit.select import Model, create_model
from thawkit.tune import RunResult, Supervised, TuneConfig, fit, linear_probe, predict

SHOWN, MISTAKES = 12, 6


def load_xrays(settings: Settings, seed: int) -> Splits:
    """Return PneumoniaMNIST, or the quick form's share of it."""
    splits = load("pneumoniamnist", seed=seed)
    if settings.xray_images is None:
        return splits
    share = settings.xray_images / len(splits.train)
    return shrunk(splits, settings.xray_images, max(share, 0.2), seed)


def shrunk(splits: Splits, train: int, share: float, seed: int) -> Splits:
    """Return ``train`` of the training images and a ``share`` of the others, every class alike.

    The result has no ``origin``: it is not what :func:`thawkit.data.load` gives.
    """
    return replace(
        splits,
        train=_some(splits.train, train / len(splits.train), seed),
        val=_some(splits.val, share, seed),
        test=_some(splits.test, share, seed),
        origin=None,
    )


def _some(dataset: ImageDataset, share: float, seed: int) -> ImageDataset:
    if share >= 1:
        return dataset
    return dataset.subset(stratified_split(dataset.labels, (share, 1 - share), seed)[0])


def describe_data(splits: Splits) -> dict[str, Any]:
    """Return the class names and how many images each part has of each class."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        "name": splits.name,
        "classes": list(splits.classes),
        "counts": {name: part.counts().tolist() for name, part in parts.items()},
        "totals": {name: len(part) for name, part in parts.items()},
    }


def new_model(seed: int) -> Model:
    """Return EfficientNet-Lite0 with ImageNet weights and a new head for two classes."""
    return create_model("efficientnet_lite0", 2, image_size=fixed.XRAY_SIZE, seed=seed)


def probe(splits: Splits, settings: Settings, seed: int) -> dict[str, Any]:
    """Return the linear probe's metrics; classes weigh alike, as in the fine-tuning."""
    return linear_probe(new_model(seed), splits, balanced=True, batch_size=settings.xray_batch)


def freeze_plan(splits: Splits, settings: Settings, seed: int) -> tuple[str, dict[str, Any]]:
    """Say, as text and as data, what trains and what one step on a real batch saves for its backward pass."""
    model = new_model(seed)
    images = [splits.train.image(i) for i in range(min(settings.xray_batch, len(splits.train)))]
    report = freeze(model.module, fixed.XRAY_POLICY, example=model.preprocess(torch.stack(images)))
    unfreeze(model.module)
    before, after = report.saved_bytes_before or 0, report.saved_bytes or 0
    return str(report), {**report.as_dict(), "images": len(images), "ratio": before / max(1, after)}


def fine_tune(splits: Splits, settings: Settings, seed: int, output: Path, console: Console) -> RunResult:
    """Train what the policy says, choosing the epoch on val."""
    return fit(
        new_model(seed),
        splits,
        method=Supervised(class_weights="balanced"),
        config=TuneConfig(
            train=fixed.XRAY_POLICY,
            epochs=settings.xray_epochs,
            batch_size=settings.xray_batch,
            learning_rate=fixed.XRAY_LEARNING_RATE,
            weight_decay=fixed.XRAY_WEIGHT_DECAY,
            augment=fixed.XRAY_AUGMENT,
            seed=seed,
            device="cpu",
        ),
        output=output,
        console=console,
    )


def samples(model: Model, test: ImageDataset, seed: int) -> dict[str, Any]:
    """Return test images drawn at random, and the mistakes that the model was surest of, for the report."""
    logits = predict(model, test)
    odds = logits.double().softmax(1).numpy()
    labels = test.labels
    assert labels is not None
    guesses = odds.argmax(1)
    drawn = np.sort(np.random.default_rng(seed).choice(len(test), min(SHOWN, len(test)), replace=False))
    wrong = np.flatnonzero(guesses != labels)
    surest = wrong[np.argsort(-odds[wrong, guesses[wrong]], kind="stable")][:MISTAKES]

    def card(index: int) -> dict[str, Any]:
        return {
            "index": index,
            "label": test.classes[labels[index]],
            "predicted": test.classes[guesses[index]],
            "probability": float(odds[index, guesses[index]]),
            "image": data_uri(test.image(index)),
        }

    return {
        "random": [card(int(i)) for i in drawn],
        "mistakes": [card(int(i)) for i in surest],
        "mistakes_total": len(wrong),
    }
