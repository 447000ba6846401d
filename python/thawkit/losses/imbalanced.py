"""Losses for classes of very different sizes, as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.ops import checks
from thawkit.ops.focal import imbalanced, options


class ClassBalancedLoss(Loss):
    """Class-balanced loss; see :func:`thawkit.losses.functional.class_balanced_loss`.

    Args:
        samples_per_class: (C,) sizes of the classes in the training set.
        loss: ``softmax``, ``sigmoid`` or ``focal``.
        beta: of the weights, from 0 to below 1.
        gamma: focusing exponent of ``focal``.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    weight: Tensor

    def __init__(
        self,
        samples_per_class: Tensor | Sequence[float],
        loss: str = "softmax",
        beta: float = 0.9999,
        gamma: float = 2.0,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__()
        checks.one_of("loss", loss, imbalanced.FORMS)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.integer("ignore_index", ignore_index)
        options.check(gamma)
        self.register_buffer("weight", F.class_balanced_weights(samples_per_class, beta))
        self.loss = loss
        self.beta = beta
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...)."""
        return imbalanced.class_weighted(
            logits,
            target,
            self.weight,
            loss=self.loss,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class LDAMLoss(Loss):
    """Label-distribution-aware margin loss; see :func:`thawkit.losses.functional.ldam_loss`.

    With ``reweight_from`` it re-weights the classes by their effective numbers from that epoch on (deferred
    re-weighting, DRW; Cao et al. 2019, algorithm 1): call :meth:`set_epoch` at the start of each epoch. The
    epoch is part of the ``state_dict``; one that has none leaves it as it is.

    Args:
        samples_per_class: (C,) sizes of the classes in the training set.
        max_margin: of the smallest class.
        scale: factor of the logits after the margin.
        weight: (C,) factors of the classes' losses in every epoch; not with ``reweight_from``.
        reweight_from: first epoch, counted from 0, with class weights; None: never.
        beta: of these weights, see :func:`thawkit.losses.functional.class_balanced_weights`.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    margins: Tensor
    weight: Tensor | None

    def __init__(
        self,
        samples_per_class: Tensor | Sequence[float],
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        *,
        reweight_from: int | None = None,
        beta: float = 0.9999,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.positive_scalar("scale", scale)
        checks.integer("ignore_index", ignore_index)
        if reweight_from is not None:
            checks.integer("reweight_from", reweight_from, 0)
            if weight is not None:
                raise ThawkitError("weight must be left out where reweight_from makes the weights")
            weight = F.class_balanced_weights(samples_per_class, beta)
        self.register_buffer("margins", F.ldam_margins(samples_per_class, max_margin))
        self.register_buffer("weight", weight)
        self.scale = scale
        self.reweight_from = reweight_from
        self.epoch = 0
        self.ignore_index = ignore_index
        self.reduction = reduction

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0.

        Raises:
            ThawkitError: it is no integer of at least 0.
        """
        checks.integer("epoch", epoch, 0)
        self.epoch = epoch

    def get_extra_state(self) -> Tensor:
        """Return the epoch, as a tensor for files that hold nothing else."""
        return torch.tensor(self.epoch, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Go to the epoch that :meth:`get_extra_state` returned."""
        self.set_epoch(int(state))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # states of before the epoch was kept
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...)."""
        deferred = self.reweight_from is not None and self.epoch < self.reweight_from
        return imbalanced.ldam(
            logits,
            target,
            self.margins,
            scale=self.scale,
            weight=None if deferred else self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class LogitAdjustedLoss(Loss):
    """Logit-adjusted softmax cross-entropy; see :func:`thawkit.losses.functional.logit_adjusted_loss`.

    Args:
        class_prior: (C,) shares or sizes of the classes in the training set.
        tau: strength.
        ignore_index: class of targets that are left out.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    class_prior: Tensor

    def __init__(
        self,
        class_prior: Tensor | Sequence[float],
        tau: float = 1.0,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.finite("tau", tau)
        checks.integer("ignore_index", ignore_index)
        # float64, as small shares are no float32 numbers
        self.register_buffer("class_prior", imbalanced.sizes("class_prior", class_prior))
        self.tau = tau
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) against class indices (N, ...)."""
        return F.logit_adjusted_loss(
            logits,
            target,
            self.class_prior,
            tau=self.tau,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
