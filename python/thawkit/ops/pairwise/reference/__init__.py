"""The definition of the pairwise losses, in plain PyTorch: any device and dtype, differentiable any times."""

from thawkit.ops.pairwise.reference.distances import squared_distances
from thawkit.ops.pairwise.reference.mmd import mean_squared_distance, mmd
from thawkit.ops.pairwise.reference.row_softmax import row_softmax

__all__ = ["mean_squared_distance", "mmd", "row_softmax", "squared_distances"]
