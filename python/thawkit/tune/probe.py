"""The honest baseline of fine-tuning: logistic regression on the frozen network's features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from thawkit.data import ImageDataset, Splits
from thawkit.errors import ThawkitError
from thawkit.select import Model, capture_features
from thawkit.tune.evaluate import check_forward, check_monitor, predict
from thawkit.tune.metrics import classification_metrics

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    model: Model,
    splits: Splits,
    *,
    monitor: str = "balanced_accuracy",
    balanced: bool = False,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Train a linear classifier on what goes into the head of the unchanged network.

    The features are computed once and standardised; the strength of the L2 penalty, from :data:`PENALTIES`,
    is the one with the best ``monitor`` on val. The objective is convex: no seed, no learning rate.

    Args:
        model: the pretrained network; it is not changed, and its head does not matter.
        splits: labelled images.
        monitor: metric of val that chooses the penalty (``loss``: the least, others: the greatest).
        balanced: weigh every class alike.
        batch_size, device: of the feature extraction.

    Returns:
        ``val`` and ``test`` metrics (:func:`thawkit.tune.classification_metrics`) and the chosen ``penalty``.

    Raises:
        ThawkitError: the monitor is not known or not defined here, a part has no labels, or the model does
            not take the images.
    """
    check_monitor(monitor, splits.val)
    check_forward(model, splits.train)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    features = {name: _features(model, part, batch_size, device) for name, part in parts.items()}
    labels = {name: torch.from_numpy(_labels(part)) for name, part in parts.items()}
    mean, std = features["train"].mean(0), features["train"].std(0).clamp(min=1e-6)
    features = {name: (values - mean) / std for name, values in features.items()}
    classes = len(splits.classes)
    weights = len(parts["train"]) / (
        classes * torch.bincount(labels["train"], minlength=classes).clamp(min=1)
    )
    sign = -1 if monitor == "loss" else 1

    best: dict[str, Any] = {}
    for penalty in PENALTIES:
        weight, bias = _logistic_regression(
            features["train"], labels["train"], classes, penalty, weights.double() if balanced else None
        )
        scores = {
            name: classification_metrics((features[name] @ weight + bias).numpy(), labels[name].numpy())
            for name in ("val", "test")
        }
        if not best or sign * scores["val"][monitor] > sign * best["val"][monitor]:
            best = {**scores, "penalty": penalty}
    return best


def _features(
    model: Model, dataset: ImageDataset, batch_size: int, device: str | torch.device | None
) -> Tensor:
    with capture_features(model.module) as captured:
        predict(model, dataset, batch_size=batch_size, device=device)
    return torch.cat([part.cpu() for part in captured]).double()


def _labels(dataset: ImageDataset) -> np.ndarray:
    if dataset.labels is None:
        raise ThawkitError(f"{dataset.name}: a linear probe needs labels, but this data set has none")
    return dataset.labels


def _logistic_regression(
    x: Tensor, labels: Tensor, classes: int, penalty: float, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty/2 · ‖W‖² over float64 W (D, C) and bias (C,) with L-BFGS."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels, class_weights) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
