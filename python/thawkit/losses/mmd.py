"""Distances between distributions as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.losses.functional.mmd import ESTIMATORS, OF_ALL_PAIRS, Bandwidths
from thawkit.ops import checks
from thawkit.ops.pairwise.reference.kernels import KERNELS


class _Scaled(Loss):
    """Keeps bandwidths: a parameter is trained, another tensor moves with the module."""

    bandwidths: Any

    def keep(self, name: str, bandwidths: Any) -> None:
        if isinstance(bandwidths, Tensor) and not isinstance(bandwidths, nn.Parameter):
            self.register_buffer(name, bandwidths, persistent=False)
        else:
            setattr(self, name, bandwidths)


class MMDLoss(_Scaled):
    """Squared maximum mean discrepancy; see :func:`thawkit.losses.functional.mmd`.

    A tensor of bandwidths moves with the module; an ``nn.Parameter`` is learned with it.
    """

    def __init__(
        self,
        kernel: str = "rbf",
        bandwidths: Bandwidths = "mean",
        estimator: str = "biased",
        *,
        degree: int = 3,
        offset: float = 1.0,
        block_size: int | None = None,
        features: int = 1024,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        checks.one_of("kernel", kernel, KERNELS)
        checks.one_of("estimator", estimator, ESTIMATORS)
        self.kernel = kernel
        self.keep("bandwidths", bandwidths)
        self.estimator = estimator
        self.degree = degree
        self.offset = offset
        self.block_size = block_size
        self.features = features
        self.generator = generator

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        weights: tuple[Tensor, Tensor] | None = None,
        class_conditional: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the squared MMD of samples (N, D) and (M, D)."""
        return F.mmd(
            x,
            y,
            kernel=self.kernel,
            bandwidths=self.bandwidths,
            estimator=self.estimator,
            weights=weights,
            class_conditional=class_conditional,
            degree=self.degree,
            offset=self.offset,
            block_size=self.block_size,
            features=self.features,
            generator=self.generator,
        )


class JointMMDLoss(_Scaled):
    """Squared joint MMD of several layers; see :func:`thawkit.losses.functional.joint_mmd`.

    Tensors of bandwidths move with the module; parameters among them are learned with it.
    """

    def __init__(
        self,
        kernel: str | Sequence[str] = "rbf",
        bandwidths: Bandwidths | Sequence[Bandwidths] = "mean",
        estimator: str = "biased",
        *,
        degree: int = 3,
        offset: float = 1.0,
    ):
        super().__init__()
        for name in kernel if isinstance(kernel, list | tuple) else [kernel]:
            checks.one_of("kernel", name, KERNELS)
        checks.one_of("estimator", estimator, OF_ALL_PAIRS)
        self.kernel = kernel
        self._layers = len(bandwidths) if isinstance(bandwidths, list) else 0  # 0: one choice for all
        for i, each in enumerate(bandwidths if isinstance(bandwidths, list) else [bandwidths]):
            self.keep(f"bandwidths_{i}", each)
        self.estimator = estimator
        self.degree = degree
        self.offset = offset

    def forward(
        self,
        x: Sequence[Tensor],
        y: Sequence[Tensor],
        *,
        weights: tuple[Tensor, Tensor] | None = None,
        class_conditional: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the squared joint MMD of layers (N, D_l) and (M, D_l)."""
        kept = [getattr(self, f"bandwidths_{i}") for i in range(max(self._layers, 1))]
        return F.joint_mmd(
            x,
            y,
            kernel=self.kernel,
            bandwidths=kept if self._layers else kept[0],
            estimator=self.estimator,
            weights=weights,
            class_conditional=class_conditional,
            degree=self.degree,
            offset=self.offset,
        )


class LocalMMDLoss(_Scaled):
    """Squared MMD class by class; see :func:`thawkit.losses.functional.local_mmd`."""

    def __init__(
        self,
        kernel: str = "rbf",
        bandwidths: Bandwidths = "mean",
        *,
        degree: int = 3,
        offset: float = 1.0,
    ):
        super().__init__()
        checks.one_of("kernel", kernel, KERNELS)
        self.kernel = kernel
        self.keep("bandwidths", bandwidths)
        self.degree = degree
        self.offset = offset

    def forward(self, x: Tensor, y: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Return the loss of features (N, D) with labels and features (M, D) with class probabilities."""
        return F.local_mmd(
            x,
            y,
            labels,
            probabilities,
            kernel=self.kernel,
            bandwidths=self.bandwidths,
            degree=self.degree,
            offset=self.offset,
        )
