"""Losses on all pairs of two sets of rows, without the matrix of pairs."""

from thawkit.ops.pairwise import row_softmax as _row_softmax
from thawkit.ops.pairwise.clip import clip
from thawkit.ops.pairwise.contrastive_pairs import contrastive, cosine_contrastive
from thawkit.ops.pairwise.info_nce import (
    info_nce,
    info_nce_statistics,
    info_nce_with_hard_negatives,
    info_nce_with_soft_targets,
)
from thawkit.ops.pairwise.linear_cross_entropy import linear_cross_entropy
from thawkit.ops.pairwise.margin import OBJECTIONS as _MARGIN_OBJECTIONS
from thawkit.ops.pairwise.median import OBJECTIONS as _MEDIAN_OBJECTIONS
from thawkit.ops.pairwise.median import median_squared_distance, usual_squared_distance
from thawkit.ops.pairwise.mmd import OBJECTIONS as _MMD_OBJECTIONS
from thawkit.ops.pairwise.mmd import mmd
from thawkit.ops.pairwise.negatives import info_nce_with_negatives
from thawkit.ops.pairwise.nt_xent import nt_xent
from thawkit.ops.pairwise.nt_xent_labels import nt_xent_labels
from thawkit.ops.pairwise.pairs import OBJECTIONS as _PAIRS_OBJECTIONS
from thawkit.ops.pairwise.permutation import OBJECTIONS as _PERMUTATION_OBJECTIONS
from thawkit.ops.pairwise.permutation import permutation_sums, permutation_sums_of_kernel, subsets
from thawkit.ops.pairwise.ranking import multiple_negatives_ranking
from thawkit.ops.pairwise.row_softmax import RowStatistics, row_softmax, row_softmax_and_statistics
from thawkit.ops.pairwise.siglip import siglip
from thawkit.ops.pairwise.supcon import supcon
from thawkit.ops.pairwise.top_k import OBJECTIONS as _TOP_K_OBJECTIONS
from thawkit.ops.pairwise.top_k import top_k
from thawkit.ops.pairwise.triplet import triplet_margin

__all__ = [
    "RowStatistics",
    "clip",
    "contrastive",
    "cosine_contrastive",
    "info_nce",
    "info_nce_statistics",
    "info_nce_with_hard_negatives",
    "info_nce_with_negatives",
    "info_nce_with_soft_targets",
    "linear_cross_entropy",
    "median_squared_distance",
    "mmd",
    "multiple_negatives_ranking",
    "nt_xent",
    "nt_xent_labels",
    "permutation_sums",
    "permutation_sums_of_kernel",
    "row_softmax",
    "row_softmax_and_statistics",
    "siglip",
    "subsets",
    "supcon",
    "top_k",
    "triplet_margin",
    "usual_squared_distance",
]

BACKENDS = {
    "row_softmax": tuple(_row_softmax.KERNELS),
    "pair_loss": tuple(_PAIRS_OBJECTIONS),
    "margin_loss": tuple(_MARGIN_OBJECTIONS),
    "median_squared_distance": tuple(_MEDIAN_OBJECTIONS),
    "mmd": tuple(_MMD_OBJECTIONS),
    "permutation_sums": tuple(_PERMUTATION_OBJECTIONS),
    "top_k": tuple(_TOP_K_OBJECTIONS),
}
