"""The losses as functions."""

from thawkit.losses.functional.classifier import linear_cross_entropy
from thawkit.losses.functional.cross_entropy import binary_cross_entropy_with_logits, cross_entropy
from thawkit.losses.functional.focal import focal_loss, sigmoid_focal_loss
from thawkit.losses.functional.imbalanced import (
    class_balanced_loss,
    class_balanced_weights,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
)
from thawkit.losses.functional.margin import contrastive, cosine_contrastive, triplet_margin
from thawkit.losses.functional.mmd import joint_mmd, local_mmd, mmd
from thawkit.losses.functional.moments import cmd, coral
from thawkit.losses.functional.ranking import multiple_negatives_ranking
from thawkit.losses.functional.retrieval import RetrievalMetrics, retrieval_metrics
from thawkit.losses.functional.scale import clamp_logit_scale
from thawkit.losses.functional.similarity import (
    clip,
    info_nce,
    info_nce_statistics,
    nt_xent,
    nt_xent_labels,
    siglip,
    supcon,
)
from thawkit.losses.functional.sliced import sliced_wasserstein
from thawkit.losses.functional.two_sample import MMDTestResult, mmd_power, mmd_test

__all__ = [
    "MMDTestResult",
    "RetrievalMetrics",
    "binary_cross_entropy_with_logits",
    "clamp_logit_scale",
    "class_balanced_loss",
    "class_balanced_weights",
    "clip",
    "cmd",
    "contrastive",
    "coral",
    "cosine_contrastive",
    "cross_entropy",
    "focal_loss",
    "info_nce",
    "info_nce_statistics",
    "joint_mmd",
    "ldam_loss",
    "ldam_margins",
    "linear_cross_entropy",
    "local_mmd",
    "logit_adjusted_loss",
    "mmd",
    "mmd_power",
    "mmd_test",
    "multiple_negatives_ranking",
    "nt_xent",
    "nt_xent_labels",
    "retrieval_metrics",
    "siglip",
    "sigmoid_focal_loss",
    "sliced_wasserstein",
    "supcon",
    "triplet_margin",
]
