"""A linear classifier and its cross-entropy as one module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import checks


class LinearCrossEntropyLoss(nn.Module):
    """A linear layer and the cross-entropy of its outputs.

    See :func:`thawkit.losses.functional.linear_cross_entropy`. Names, arguments and ``state_dict`` are those
    of ``torch.nn.LinearCrossEntropyLoss``.

    Args:
        in_features: D, the size of each sample.
        num_classes: C.
        out_features: (d_1, ..., d_K) for K-dimensional targets.
        bias: learn a bias of the logits.
        device: of the layer.
        dtype: of the layer.
        reduction: ``none``, ``mean`` or ``sum``.
        weight: (C,) factors of the classes' losses.
        ignore_index: target class without a loss; None is -100.
        label_smoothing: share of each target that is spread evenly over the classes.
        options: taken for the sake of torch's callers and without effect.
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object = None,
    ):
        super().__init__()
        checks.integer("in_features", in_features, 1)
        checks.integer("num_classes", num_classes, 1)
        if not isinstance(out_features, tuple):
            raise ThawkitError(f"out_features must be a tuple of integers, got {out_features!r}")
        for size in out_features:
            checks.integer("out_features", size, 1)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        if ignore_index is not None:
            checks.integer("ignore_index", ignore_index)
        if weight is not None:
            checks.floating("weight", weight)
            if weight.shape != (num_classes,):
                raise ThawkitError(f"weight must have shape ({num_classes},), got {tuple(weight.shape)}")
        checks.finite("label_smoothing", label_smoothing)
        if not 0 <= label_smoothing <= 1:
            raise ThawkitError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        self.num_classes = num_classes
        self.out_features = out_features
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self.register_buffer("weight", weight)
        rows = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``input`` (..., D) for the classes (..., d_1, ..., d_K) or probabilities."""
        shape = self.num_classes, *self.out_features
        bias = self.linear.bias
        return F.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )

    def extra_repr(self) -> str:
        """Return what the representation says beside the layer."""
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )
