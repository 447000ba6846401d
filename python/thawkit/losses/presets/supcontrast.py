"""Stand-in for SupContrast's ``SupConLoss`` (``losses.py`` of github.com/HobbitLong/SupContrast)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import checks
from thawkit.ops.pairwise.common import numbered

_NEXT_TO_0 = 1e-6


class SupConLoss(nn.Module):
    """SupContrast's ``SupConLoss``: several views of each sample, attracted by label or by a mask.

    Args:
        temperature: divides the similarities; a parameter is learned with the model.
        contrast_mode: ``all``: each view is an anchor; ``one``: each sample's first.
        base_temperature: the loss is multiplied by ``temperature / base_temperature``.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
    ):
        super().__init__()
        checks.positive_scalar("temperature", temperature)
        checks.one_of("contrast_mode", contrast_mode, ("all", "one"))
        checks.positive_scalar("base_temperature", base_temperature)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the mean loss of all anchors; one without a positive has loss 0.

        Without labels and mask the positives of a view are the other views of its sample: SimCLR's loss.

        Args:
            features: (B, V, ...) views, normalized already; what follows V is one vector.
            labels: (B,) numbers, equal for samples of one class.
            mask: (B, B), 1 where sample j is a positive of sample i, which need not be symmetric, or weights
                of at least 0 in its place.
        """
        checks.floating("features", features)
        if features.dim() < 3:
            raise ThawkitError(f"features must have shape (B, V, ...), got {tuple(features.shape)}")
        samples, views = features.shape[:2]
        checks.reduced("features", samples * views, "mean")
        labels, mask = _positives(labels, mask, samples, features.device)
        rows = features.flatten(2).transpose(0, 1).flatten(0, 1)  # view by view
        labels = None if labels is None else labels.repeat(views)
        anchors = samples if self.contrast_mode == "one" else samples * views
        losses = F.supcon(
            rows[:anchors],
            None if labels is None else labels[:anchors],
            temperature=self.temperature,
            normalize=False,
            reduction="none",
            ref=rows,
            ref_labels=labels,
            own=0,
            pair_weight=mask,
        )
        if mask is not None:
            losses = losses * _share(mask, views).repeat(anchors // samples)
        return self.temperature / self.base_temperature * losses.mean()


def _share(mask: Tensor, views: int) -> Tensor:
    """Return (B,) factors of the anchors' losses: weights next to 0 are not divided by."""
    weight = mask.to(torch.float32) * (views - torch.eye(len(mask), device=mask.device))
    total = weight.sum(1)
    return total.where(total < _NEXT_TO_0, 1)


def _positives(
    labels: Tensor | None, mask: Tensor | None, samples: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Return either (B,) labels or a (B, B) mask on the device of the features."""
    if labels is not None and mask is not None:
        raise ThawkitError("either labels or mask may be given, got both")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != (samples, samples):
            came = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ThawkitError(f"mask must be a tensor of shape ({samples}, {samples}), got {came}")
        if mask.requires_grad:
            raise ThawkitError("mask must not require a gradient: this loss has none for it")
        checks.not_negative("mask", mask)
        return None, mask.to(device)
    if labels is None:
        return torch.arange(samples, device=device), None
    if not isinstance(labels, Tensor) or labels.numel() != samples:
        came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ThawkitError(f"labels must be a tensor of {samples} numbers, one a sample, got {came}")
    labels = labels.reshape(samples).to(device)
    if labels.is_floating_point():
        if checks.readable(labels) and not bool(labels.isfinite().all()):
            raise ThawkitError("labels must be finite")
        labels = numbered(labels)
    return labels, None
