"""SimCLR's loss: checks."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops import checks
from thawkit.ops.pairwise.common import lifted, summand
from thawkit.ops.pairwise.pairs import pair_loss


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: Tensor | float, *, normalize: bool = True, reduction: str = "mean"
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1): each of 2N rows against the 2N - 1 others.

    Args:
        z1: (N, D) embeddings of one view.
        z2: (N, D) embeddings of the other, of the same dtype; ``z2[i]`` and ``z1[i]`` are a pair.
        temperature: a positive number, or a tensor of one element, which gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``none`` gives (2N,) losses, those of ``z1`` first, ``mean`` and ``sum`` a scalar.

    Returns:
        The loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, the temperature is not positive, or there is
            nothing to take the mean of.
    """
    checks.matrix("z1", z1)
    checks.twin("z2", z2, "z1", z1)
    checks.positive_scalar("temperature", temperature)
    temperature = checks.one_number("temperature", temperature, z1)
    checks.reduced("z1", z1.shape[0], reduction)
    z = torch.cat((z1, z2))
    scale = 1 / lifted(temperature)
    weight = summand(reduction, z.shape[0])
    return pair_loss("nt_xent", z, None, scale, None, normalize=normalize, weight=weight)
