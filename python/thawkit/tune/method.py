"""A method is a loss on a batch: supervised fine-tuning here, adaptation in :mod:`thawkit.adapt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thawkit.choices import CRITERIA
from thawkit.data import ImageDataset
from thawkit.errors import ThawkitError


class Method:
    """What the trainer minimises. Subclass it, write :meth:`loss`, and give your arguments in :meth:`config`.

    ``uses_target`` asks for batches that pair the source images with as many target images.
    """

    uses_target = False

    def prepare(self, train: ImageDataset, num_classes: int) -> None:
        """Look at the training images once, before training starts."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the scalar to minimise.

        Args:
            model: the network in training mode, images (N, 3, S, S) to logits (N, C).
            batch: ``pixel_values`` float32 (N, 3, S, S); ``labels`` int64 (N,); ``progress`` float32 scalar,
                the share of all steps done, in [0, 1); with ``uses_target`` also ``target_pixel_values``.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return what tells this method apart from others, as JSON can hold it."""
        return {"name": type(self).__name__}


class Supervised(Method):
    """Cross-entropy or focal loss on the labels.

    Args:
        criterion: ``cross_entropy`` or ``focal`` (Lin et al. 2017, softmax form).
        label_smoothing: share of the label spread over all classes (cross-entropy only), in [0, 1).
        class_weights: one weight a class, or ``balanced`` for N / (C · count), or None.
        gamma: of the focal loss.
    """

    def __init__(
        self,
        criterion: str = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        gamma: float = 2.0,
    ) -> None:
        if criterion not in CRITERIA:
            raise ThawkitError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
        if not 0 <= label_smoothing < 1:
            raise ThawkitError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if criterion == "focal" and label_smoothing:
            raise ThawkitError("label_smoothing goes with cross_entropy; the focal loss has none")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ThawkitError(f"class_weights must be 'balanced', numbers or None, got {class_weights!r}")
        self.criterion, self.label_smoothing, self.gamma = criterion, label_smoothing, gamma
        self.class_weights = class_weights
        self._weights: Tensor | None = None

    def prepare(self, train: ImageDataset, num_classes: int) -> None:
        """Turn ``class_weights`` into a tensor (C,)."""
        if self.class_weights is None:
            return
        if isinstance(self.class_weights, str):
            counts = torch.from_numpy(train.counts())
            self._weights = (len(train) / (num_classes * counts.clamp(min=1))).float()
        else:
            self._weights = torch.tensor(list(self.class_weights), dtype=torch.float32)
        if len(self._weights) != num_classes:
            raise ThawkitError(f"class_weights: {len(self._weights)} weights for {num_classes} classes")

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of the labelled images."""
        return self.criterion_loss(model(batch["pixel_values"]), batch["labels"])

    def criterion_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (N, C) against labels (N,)."""
        weights = None if self._weights is None else self._weights.to(logits.device)
        if self.criterion == "cross_entropy":
            return F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
        from thawkit.losses import FocalLoss

        return FocalLoss(gamma=self.gamma, alpha=weights)(logits, labels)

    def config(self) -> dict[str, Any]:
        """Return the arguments."""
        weights = self.class_weights
        return {
            **super().config(),
            "criterion": self.criterion,
            "label_smoothing": self.label_smoothing,
            "class_weights": weights if weights is None or isinstance(weights, str) else list(weights),
            "gamma": self.gamma,
        }
