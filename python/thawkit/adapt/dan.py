"""Deep Adaptation Network: make source and target features indistinguishable to a kernel.

M. Long, Y. Cao, J. Wang, M. I. Jordan, "Learning Transferable Features with Deep Adaptation Networks",
ICML 2015.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import MMDLoss
from thawkit.select import capture_features
from thawkit.tune import Supervised


class DAN(Supervised):
    """The supervised loss on the source, plus the multi-kernel MMD between source and target features.

    The features are what goes into the classifier head. Source and target go through the network in one
    batch, so batch normalisation sees both. The paper aligns three fully connected layers of AlexNet and
    learns the kernels' weights; like later practice this aligns one layer with equal weights.

    Args:
        trade_off: weight of the MMD term (the paper's lambda), at least 0.
        ramp: multiply it by 2 / (1 + exp(-10 p)) - 1, p the share of training done (Ganin and Lempitsky
            2015): features are aligned once they mean something.
        kernels: number of Gaussian kernels, an odd number: their bandwidths are the mean squared distance
            times powers of ``multiplier``, the middle one times 1.
        multiplier: ratio of neighbouring bandwidths.
        **supervised: arguments of :class:`thawkit.tune.Supervised`, for the source loss.
    """

    uses_target = True

    def __init__(
        self,
        trade_off: float = 1.0,
        *,
        ramp: bool = True,
        kernels: int = 5,
        multiplier: float = 2.0,
        **supervised: Any,
    ) -> None:
        super().__init__(**supervised)
        if not trade_off >= 0 or not math.isfinite(trade_off):
            raise ThawkitError(f"trade_off must be a number from 0 up, got {trade_off}")
        self.trade_off, self.ramp, self.kernels, self.multiplier = trade_off, ramp, kernels, multiplier
        self.mmd = MMDLoss(bandwidths=(multiplier, kernels))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return source loss + weight · MMD; of the target, images alone are read."""
        source, target = batch["pixel_values"], batch["target_pixel_values"]
        with capture_features(model) as captured:
            logits = model(torch.cat([source, target]))
        features, target_features = captured[0].float().split([len(source), len(target)])
        supervised = self.criterion_loss(logits[: len(source)], batch["labels"])
        return supervised + self.weight(float(batch["progress"])) * self.mmd(features, target_features)

    def weight(self, progress: float) -> float:
        """Return the weight of the MMD term when the share ``progress`` of training is done."""
        return self.trade_off * (2 / (1 + math.exp(-10 * progress)) - 1 if self.ramp else 1.0)

    def config(self) -> dict[str, Any]:
        """Return the arguments."""
        own = {"trade_off": self.trade_off, "ramp": self.ramp}
        return {**super().config(), **own, "kernels": self.kernels, "multiplier": self.multiplier}
