"""Losses, fused where it pays: drop-in modules here, functions in :mod:`thawkit.losses.functional`."""

from thawkit.losses.classifier import LinearCrossEntropyLoss
from thawkit.losses.contrastive import (
    ClipLoss,
    InfoNCELoss,
    NegativeQueue,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)
from thawkit.losses.focal import FocalLoss, SigmoidFocalLoss
from thawkit.losses.margin import ContrastiveLoss, CosineContrastiveLoss, TripletMarginLoss
from thawkit.losses.mmd import JointMMDLoss, LocalMMDLoss, MMDLoss

__all__ = [
    "ClipLoss",
    "ContrastiveLoss",
    "CosineContrastiveLoss",
    "FocalLoss",
    "InfoNCELoss",
    "JointMMDLoss",
    "LinearCrossEntropyLoss",
    "LocalMMDLoss",
    "MMDLoss",
    "NTXentLoss",
    "NegativeQueue",
    "SigLipLoss",
    "SigmoidFocalLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
