"""Running a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from thawkit.choices import MONITORS
from thawkit.data import ImageDataset, collate_images
from thawkit.errors import ThawkitError, one_line
from thawkit.select import Model
from thawkit.tune.metrics import classification_metrics


def predict(
    model: Model,
    dataset: ImageDataset,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the logits of every image, float32 (N, C) on the CPU, in the data set's order.

    Args:
        model: put in evaluation mode for the call, and back afterwards.
        dataset: labelled or not.
        batch_size: images a forward pass.
        device: where to run; where the model is when not given.
        on_batch: called with the number of images just done.
    """
    with in_mode(model.module, training=False, device=device) as place, torch.inference_mode():
        parts = []
        for start in range(0, len(dataset), batch_size):
            images = [dataset.image(i) for i in range(start, min(start + batch_size, len(dataset)))]
            parts.append(model.module(collate_images(images, model.preprocess).to(place)).float().cpu())
            if on_batch:
                on_batch(len(images))
    return torch.cat(parts) if parts else torch.empty(0, model.num_classes)


def evaluate(
    model: Model,
    dataset: ImageDataset,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score ``model`` on ``dataset``: :func:`thawkit.tune.classification_metrics`, run as in :func:`predict`.

    Raises:
        ThawkitError: the data set has no labels or images, or other classes than the model.
    """
    check_classes(model, dataset)
    if dataset.labels is None:
        raise ThawkitError(f"{dataset.name}: labels are needed to evaluate, but this data set has none")
    logits = predict(model, dataset, batch_size=batch_size, device=device, on_batch=on_batch)
    return classification_metrics(logits.numpy(), dataset.labels)


def check_classes(model: Model, dataset: ImageDataset) -> None:
    """Raise a :class:`ThawkitError` unless model and data have the same number of classes."""
    if model.num_classes != len(dataset.classes):
        raise ThawkitError(
            f"{dataset.name} has {len(dataset.classes)} classes, "
            f"the model {model.name} has {model.num_classes} outputs"
        )


def check_monitor(monitor: str, validation: ImageDataset) -> None:
    """Raise a :class:`ThawkitError` unless ``monitor`` is a metric that these images have."""
    if monitor not in MONITORS:
        raise ThawkitError(f"monitor must be one of {', '.join(MONITORS)}, got {monitor!r}")
    classes, found = len(validation.classes), np.count_nonzero(validation.counts())
    if monitor == "auroc" and (classes, found) != (2, 2):
        raise ThawkitError(
            f"monitor 'auroc' needs validation images of exactly 2 classes, {validation.name} has images of "
            f"{found} of {classes}"
        )


def check_forward(model: Model, dataset: ImageDataset) -> None:
    """Run two images through the model in training mode, and leave it and the random state as they were.

    Raises:
        ThawkitError: it fails on images of its size, or does not give logits (N, num_classes) and only those.
    """
    size, classes = model.preprocess.size, model.num_classes
    images = collate_images([dataset.image(i) for i in range(2)], model.preprocess)
    # Batch normalisation counts on copies of its statistics.
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    try:
        with (
            in_mode(model.module, training=True) as place,
            torch.random.fork_rng([place] if place.type == "cuda" else []),
            torch.no_grad(),
        ):
            output = functional_call(model.module, buffers, (images.to(place),))
    except Exception as error:  # networks raise whatever their authors thought of
        raise ThawkitError(
            f"the model {model.name} fails on images of {size}×{size} pixels: {one_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.shape != (2, classes):
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ThawkitError(
            f"the model {model.name} must give logits (2, {classes}) for 2 images in training, got {came}"
        )


@contextmanager
def in_mode(
    module: nn.Module, *, training: bool, device: str | torch.device | None = None
) -> Iterator[torch.device]:
    """Put all modules in training or evaluation mode, on a device, which is given; put the modes back."""
    modes = {child: child.training for child in module.modules()}
    place = next(module.parameters()).device if device is None else torch.device(device)
    try:
        module.to(place).train(training)
        yield place
    finally:
        for child, training in modes.items():
            child.training = training
