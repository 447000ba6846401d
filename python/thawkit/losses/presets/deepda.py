"""Stand-ins for DeepDA's losses (``code/DeepDA/loss_funcs`` of github.com/jindongwang/transferlearning).

What differs: float64 stays float64, samples may lie on any device, and ``fix_sigma`` is refused: DeepDA takes
it and then forgets it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks
from thawkit.ops.pairwise import mmd
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference import mean_squared_distance
from thawkit.ops.pairwise.reference.kernels import Kernel
from thawkit.ops.pairwise.reference.mmd import Sample, Weights

_SMALLEST_SQUARE = 1e-37  # coinciding points: keep the bandwidth above 0


class MMDLoss(nn.Module):
    """DeepDA's ``MMDLoss``: kernels ``exp(-d^2 / b)``, b being the mean squared distance times powers.

    Args:
        kernel_type: ``rbf``, or ``linear``: the squared distance of the means.
        kernel_mul: ratio of neighbouring b.
        kernel_num: number of kernels; the one in the middle has the mean itself.
        fix_sigma: None only.
        **kwargs: without effect, as there.
    """

    def __init__(
        self,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        checks.one_of("kernel_type", kernel_type, ("rbf", "linear"))
        checks.positive_scalar("kernel_mul", kernel_mul)
        checks.integer("kernel_num", kernel_num, 1)
        only(None, fix_sigma=fix_sigma)
        self.kernel_num = kernel_num
        self.kernel_mul = kernel_mul
        self.fix_sigma = None
        self.kernel_type = kernel_type

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the biased squared MMD of features (N, D) and (M, D)."""
        checks.row_pair("source", source, "target", target)
        if self.kernel_type == "rbf":
            bandwidths = (self._squares(lifted(source), lifted(target)) / 2).sqrt()
            return F.mmd(source, target, bandwidths=bandwidths, estimator="biased")
        if 0 in (source.shape[0], target.shape[0]):
            raise ThawkitError("source and target must have at least 1 row each, got none")
        return (lifted(source).mean(0) - lifted(target).mean(0)).square().sum()

    def _squares(self, source: Tensor, target: Tensor) -> Tensor:
        """(kernel_num,) float64 numbers b, without a gradient."""
        mean = mean_squared_distance(source.double(), target.double()).clamp_min(_SMALLEST_SQUARE)
        exponents = torch.arange(self.kernel_num, device=mean.device) - self.kernel_num // 2
        return mean * self.kernel_mul ** exponents.to(mean.dtype)


class LMMDLoss(MMDLoss):
    """DeepDA's ``LMMDLoss``: MMD class by class, the target's rows weighted by their predicted classes.

    Every call counts as a step of the schedule, ``2 / (1 + exp(-gamma p)) - 1`` with p the share of
    ``max_iter`` done, which multiplies the loss; the first call's is 0. In O(N^2 (D + C)) time; no matrix of
    pairs is stored.

    Args:
        num_class: C.
        kernel_type: ``rbf`` only.
        kernel_mul, kernel_num, fix_sigma: as for :class:`MMDLoss`.
        gamma: steepness of the schedule.
        max_iter: its length.
        **kwargs: without effect, as there.
    """

    def __init__(
        self,
        num_class: int,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
        gamma: float = 1.0,
        max_iter: int = 1000,
        **kwargs: Any,
    ):
        only("rbf", kernel_type=kernel_type)
        super().__init__(kernel_type, kernel_mul, kernel_num, fix_sigma, **kwargs)
        checks.integer("num_class", num_class, 1)
        checks.finite("gamma", gamma)
        checks.integer("max_iter", max_iter, 1)
        self.num_class = num_class
        self.gamma = gamma
        self.max_iter = max_iter
        self.curr_iter = 0

    def lamb(self) -> float:
        """Return the factor of the next call."""
        return 2.0 / (1.0 + math.exp(-self.gamma * self.curr_iter / self.max_iter)) - 1

    def step(self) -> None:
        """Go on by one step."""
        self.curr_iter = min(self.curr_iter + 1, self.max_iter)

    def forward(  # type: ignore[override]  # further arguments, as there
        self, source: Tensor, target: Tensor, source_label: Tensor, target_logits: Tensor
    ) -> Tensor:
        """Return the (1,) loss; 0 where the batches have no class in common, or a feature is not finite.

        Args:
            source: (N, D) features.
            target: (M, D) features.
            source_label: (N,) classes.
            target_logits: (M, C) probabilities of the target's rows; there is no gradient for them.
        """
        checks.row_pair("source", source, "target", target)
        checks.labels("source_label", source_label, "source", source)
        checks.matrix("target_logits", target_logits)
        if target_logits.shape != (target.shape[0], self.num_class):
            raise ThawkitError(
                f"target_logits must have shape {(target.shape[0], self.num_class)}, "
                f"got {tuple(target_logits.shape)}"
            )
        with full_precision(source):
            source, target = lifted(source), lifted(target)
            usable = source.isfinite().all() & target.isfinite().all()
            source, target = source.where(usable, 0), target.where(usable, 0)
            shares_s, shares_t = self._weights(source_label, lifted(target_logits.detach()).to(target))
            # Summed over the classes the weights of pairs are inner products: a linear kernel's
            layers = [
                Sample(source, target, Kernel("rbf"), 2 / self._squares(source, target)),
                Sample(shares_s, shares_t, Kernel("linear"), None),
            ]
            loss = mmd(layers, Weights(shares_s.new_ones(len(source)), -shares_t.new_ones(len(target))))
            loss = loss.where(usable, 0)
        factor = self.lamb()
        self.step()
        return (loss * factor).reshape(1)

    def _weights(self, source_label: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) and (M, C): what each row counts in each class."""
        of_source = nn.functional.one_hot(source_label.long(), self.num_class).to(probabilities)
        predicted = nn.functional.one_hot(probabilities.argmax(1), self.num_class)
        common = (of_source.sum(0) > 0) & (predicted.sum(0) > 0)
        each = common / common.sum().clamp_min(1).to(probabilities).sqrt()
        return _shares(of_source) * each, _shares(probabilities) * each


def _shares(weights: Tensor) -> Tensor:
    """Columns over their sums; DeepDA has 100 in place of a sum of 0."""
    sums = weights.sum(0)
    return weights / torch.where(sums == 0, 100.0, sums)


def CORAL(source: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
    """DeepDA's ``CORAL``: ``F.coral`` of features (N, D) and (M, D); options are without effect, as there."""
    return F.coral(source, target, scale="deep_coral")
