"""Losses, fused where it pays: drop-in modules here, functions in :mod:`thawkit.losses.functional`."""

from thawkit.losses.contrastive import InfoNCELoss
from thawkit.losses.focal import FocalLoss, SigmoidFocalLoss
from thawkit.losses.mmd import MMDLoss

__all__ = ["FocalLoss", "InfoNCELoss", "MMDLoss", "SigmoidFocalLoss"]
