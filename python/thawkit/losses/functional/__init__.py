"""The losses as functions."""

from thawkit.losses.functional.classifier import linear_cross_entropy
from thawkit.losses.functional.focal import focal_loss, sigmoid_focal_loss
from thawkit.losses.functional.margin import contrastive, cosine_contrastive, triplet_margin
from thawkit.losses.functional.mmd import joint_mmd, local_mmd, mmd
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

__all__ = [
    "RetrievalMetrics",
    "clamp_logit_scale",
    "clip",
    "contrastive",
    "cosine_contrastive",
    "focal_loss",
    "info_nce",
    "info_nce_statistics",
    "joint_mmd",
    "linear_cross_entropy",
    "local_mmd",
    "mmd",
    "multiple_negatives_ranking",
    "nt_xent",
    "nt_xent_labels",
    "retrieval_metrics",
    "siglip",
    "sigmoid_focal_loss",
    "supcon",
    "triplet_margin",
]
