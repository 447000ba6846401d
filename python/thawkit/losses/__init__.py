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
from thawkit.losses.mmd import MMDLoss
from thawkit.losses.moments import CMDLoss, CORALLoss
from thawkit.losses.sliced import SlicedWassersteinLoss

__all__ = [
    "CMDLoss",
    "CORALLoss",
    "ClipLoss",
    "ContrastiveLoss",
    "CosineContrastiveLoss",
    "FocalLoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MMDLoss",
    "NTXentLoss",
    "NegativeQueue",
    "SigLipLoss",
    "SigmoidFocalLoss",
    "SlicedWassersteinLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
