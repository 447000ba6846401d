"""The definition of the pairwise losses, in plain PyTorch: any device and dtype, differentiable any times."""

from thawkit.ops.pairwise.reference.classifier import linear_cross_entropy
from thawkit.ops.pairwise.reference.distances import squared_distances
from thawkit.ops.pairwise.reference.margin import contrastive, cosine_contrastive, triplet_margin
from thawkit.ops.pairwise.reference.mmd import mean_squared_distance, median_squared_distance, mmd
from thawkit.ops.pairwise.reference.permutation import permutation_sums, permutation_sums_of, subsets
from thawkit.ops.pairwise.reference.power import power_criterion
from thawkit.ops.pairwise.reference.row_softmax import row_softmax
from thawkit.ops.pairwise.reference.similarity import (
    clip,
    nt_xent,
    nt_xent_labels,
    own_pairs,
    shared_labels,
    siglip,
    supcon,
)
from thawkit.ops.pairwise.reference.top_k import top_k

__all__ = [
    "clip",
    "contrastive",
    "cosine_contrastive",
    "linear_cross_entropy",
    "mean_squared_distance",
    "median_squared_distance",
    "mmd",
    "nt_xent",
    "nt_xent_labels",
    "own_pairs",
    "permutation_sums",
    "permutation_sums_of",
    "power_criterion",
    "row_softmax",
    "shared_labels",
    "siglip",
    "squared_distances",
    "subsets",
    "supcon",
    "top_k",
    "triplet_margin",
]
