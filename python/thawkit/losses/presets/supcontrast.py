"""Stand-in for SupContrast's ``SupConLoss`` (``losses.py`` of github.com/HobbitLong/SupContrast)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import checks


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
            labels: (B,) integers.
            mask: (B, B), 1 where sample j is a positive of sample i, which need not be symmetric.
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
        total = F.supcon(
            rows[:anchors],
            None if labels is None else labels[:anchors],
            temperature=self.temperature,
            normalize=False,
            reduction="sum",
            ref=rows,
            ref_labels=labels,
            own=0,
            pair_weight=mask,
        )
        return self.temperature / self.base_temperature * total / anchors


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
        return None, mask.to(device)
    if labels is None:
        return torch.arange(samples, device=device), None
    if not isinstance(labels, Tensor) or labels.numel() != samples:
        came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ThawkitError(f"labels must be a tensor of {samples} integers, one a sample, got {came}")
    return labels.reshape(samples).to(device), None
