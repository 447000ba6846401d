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
from thawkit.losses.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from thawkit.losses.focal import FocalLoss, SigmoidFocalLoss
from thawkit.losses.imbalanced import ClassBalancedLoss, LDAMLoss, LogitAdjustedLoss
from thawkit.losses.margin import ContrastiveLoss, CosineContrastiveLoss, TripletMarginLoss
from thawkit.losses.mmd import MMDLoss

__all__ = [
    "BCEWithLogitsLoss",
    "ClassBalancedLoss",
    "ClipLoss",
    "ContrastiveLoss",
    "CosineContrastiveLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "InfoNCELoss",
    "LDAMLoss",
    "LinearCrossEntropyLoss",
    "LogitAdjustedLoss",
    "MMDLoss",
    "NTXentLoss",
    "NegativeQueue",
    "SigLipLoss",
    "SigmoidFocalLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
