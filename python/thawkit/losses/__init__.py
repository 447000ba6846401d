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
from thawkit.losses.deep_kernel import DeepKernel, DeepKernelTest
from thawkit.losses.focal import FocalLoss, SigmoidFocalLoss
from thawkit.losses.functional.two_sample import MMDTestResult, mmd_test
from thawkit.losses.imbalanced import ClassBalancedLoss, LDAMLoss, LogitAdjustedLoss
from thawkit.losses.margin import ContrastiveLoss, CosineContrastiveLoss, TripletMarginLoss
from thawkit.losses.mmd import JointMMDLoss, LocalMMDLoss, MMDLoss
from thawkit.losses.moments import CMDLoss, CORALLoss
from thawkit.losses.sliced import SlicedWassersteinLoss

__all__ = [
    "BCEWithLogitsLoss",
    "CMDLoss",
    "CORALLoss",
    "ClassBalancedLoss",
    "ClipLoss",
    "ContrastiveLoss",
    "CosineContrastiveLoss",
    "CrossEntropyLoss",
    "DeepKernel",
    "DeepKernelTest",
    "FocalLoss",
    "InfoNCELoss",
    "JointMMDLoss",
    "LDAMLoss",
    "LinearCrossEntropyLoss",
    "LocalMMDLoss",
    "LogitAdjustedLoss",
    "MMDLoss",
    "MMDTestResult",
    "NTXentLoss",
    "NegativeQueue",
    "SigLipLoss",
    "SigmoidFocalLoss",
    "SlicedWassersteinLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "mmd_test",
]
