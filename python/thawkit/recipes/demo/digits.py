"""The digits half: from one source of handwriting to another, with and without adaptation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from thawkit.adapt import DAN, fit_adapt
from thawkit.data import Splits, load
from thawkit.recipes.demo import settings as fixed
from thawkit.recipes.demo.pictures import data_uri
from thawkit.recipes.demo.settings import Settings
from thawkit.recipes.demo.xrays import shrunk
from thawkit.select import Model, create_model
from thawkit.tune import RunResult, Supervised, TuneConfig, predict

METHODS: dict[str, Callable[[], Supervised]] = {"source_only": Supervised, "dan": DAN}
SHOWN, SHOWN_SOURCE = 12, 9


def load_digits(settings: Settings, seed: int) -> tuple[Splits, Splits]:
    """Return source and target, or the quick form's share of them."""
    source = load(fixed.SOURCE, seed=seed, test=fixed.TARGET_TEST)
    target = load(fixed.TARGET, seed=seed, test=fixed.TARGET_TEST)
    if settings.digit_images is None:
        return source, target
    return shrunk(source, settings.digit_images, 0.2, seed), shrunk(target, settings.digit_images, 0.4, seed)


def train(
    source: Splits,
    target: Splits,
    settings: Settings,
    seed: int,
    folder: Path,
    on_run: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train source-only and DAN with every seed, same budget and order, and gather the target accuracies."""
    runs: list[dict[str, Any]] = []
    models: dict[str, Model] = {}
    for number in range(seed, seed + settings.digit_seeds):
        for method in METHODS:
            start = time.perf_counter()
            done = _fit(method, source, target, settings, number, folder / f"{method}-{number}")
            models.setdefault(method, done.model)
            runs.append(_row(method, number, done, time.perf_counter() - start))
            on_run(runs[-1])
    return {"runs": runs, **_compared(runs), "samples": _samples(models, source, target, seed)}


def _fit(
    method: str, source: Splits, target: Splits, settings: Settings, seed: int, output: Path
) -> RunResult:
    return fit_adapt(
        create_model("lenet", len(source.classes), seed=seed),
        source,
        target,
        method=METHODS[method](),
        config=TuneConfig(
            train="all",
            keep="last",
            epochs=settings.digit_epochs,
            batch_size=settings.digit_batch,
            learning_rate=fixed.DIGIT_LEARNING_RATE,
            augment=fixed.DIGIT_AUGMENT,
            seed=seed,
            device="cpu",
        ),
        output=output,
        console=Console(quiet=True),
    )


def _row(method: str, seed: int, run: RunResult, seconds: float) -> dict[str, Any]:
    return {
        "method": method,
        "seed": seed,
        "target_accuracy": run.metrics["target"]["accuracy"],
        "source_accuracy": run.metrics["test"]["accuracy"],
        "history": [
            {"epoch": row["epoch"], "target_accuracy": row["target_accuracy"], "loss": row["loss"]}
            for row in run.history
        ],
        "seconds": seconds,
    }


def _compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed: dict[int, dict[str, float]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], {})[run["method"]] = run["target_accuracy"]
    seeds = [{"seed": s, **both, "gain": both["dan"] - both["source_only"]} for s, both in by_seed.items()]
    mean = {key: float(np.mean([row[key] for row in seeds])) for key in ("source_only", "dan", "gain")}
    return {"seeds": seeds, "mean": mean}


def _samples(models: dict[str, Model], source: Splits, target: Splits, seed: int) -> dict[str, Any]:
    """Return digits of both domains drawn at random, the target's with what the first seed's models say."""
    test = target.test
    assert test.labels is not None
    guesses = {method: predict(model, test).argmax(1).numpy() for method, model in models.items()}
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(len(test), min(SHOWN, len(test)), replace=False))
    cards = [
        {
            "index": int(i),
            "label": test.classes[test.labels[i]],
            **{method: test.classes[found[i]] for method, found in guesses.items()},
            "image": data_uri(test.image(int(i))),
        }
        for i in rows
    ]
    shown = draw.choice(len(source.train), min(SHOWN_SOURCE, len(source.train)), replace=False)
    return {"source": [data_uri(source.train.image(int(i))) for i in shown], "target": cards}
