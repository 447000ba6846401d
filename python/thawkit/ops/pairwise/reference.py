"""The definition of the pairwise losses, in plain PyTorch: any device and dtype, differentiable any times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from thawkit.ops.pairwise.row_softmax import Columns


def row_softmax(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    columns: Columns,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each row's softmax (InfoNCE: van den Oord et al. 2018, eq. 4; 1807.03748).

    Args:
        q: queries (N, D).
        k: keys (M, D).
        scale: number that multiplies the similarities, the inverse temperature.
        target: (N,) the positive's column, below 0 none; None: ``i + columns.offset``.
        bias: (M,) added to the logits.
        row_labels: (N,), and
        key_labels: (M,), for ``columns.labels``.
        columns: which columns count.
        normalize: divide each row by its Euclidean norm first.

    Returns:
        (N,) losses ``logsumexp_j s_ij - s_it`` with ``s = scale * q @ k.T + bias``, without the second term
        where there is no t; the logits s_it (NaN where there is no t) and the largest logits.
    """
    if normalize:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = scale.to(q.dtype) * (q @ k.t())
    if bias is not None:
        logits = logits + bias.to(q.dtype)
    rows, number = torch.arange(q.shape[0], device=q.device), torch.arange(k.shape[0], device=q.device)
    if target is None:
        target = rows + columns.offset
    has_positive = target >= 0
    own = target.clamp_min(0)[:, None]
    positive = logits.gather(1, own).squeeze(1)
    out = torch.zeros(logits.shape, dtype=torch.bool, device=q.device)
    if columns.excluded is not None:
        out |= number == (rows + columns.excluded)[:, None]
    if columns.labels != "ignored":
        assert row_labels is not None
        assert key_labels is not None
        out |= (row_labels[:, None] == key_labels) == (columns.labels == "drop same")
    own_column = number == target[:, None]
    maximum = logits.detach().masked_fill(out & ~own_column, -torch.inf)
    maximum = maximum.amax(1) if k.shape[0] else positive.detach()
    out |= (logits > (positive + columns.margin)[:, None]) & has_positive[:, None]
    out &= ~own_column
    logits = logits.masked_fill(out, -torch.inf)
    nothing = out.all(1)
    logits = logits.masked_fill(nothing[:, None], 0.0)
    log_sum = logits.logsumexp(1).masked_fill(nothing, -torch.inf)
    loss = torch.where(has_positive, -logits.log_softmax(1).gather(1, own).squeeze(1), log_sum)
    return loss, positive.detach().masked_fill(~has_positive, torch.nan), maximum


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared Euclidean distances, in O(N M) memory."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.t()).clamp_min(0)


def mean_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ``|u - v|^2`` over the pairs of distinct rows of both samples, in O((N + M) D), detached.

    Uses ``mean |u - v|^2 = 2 (mean |z|^2 - |mean z|^2)``, about the mean so that no digits are lost.
    """
    z = torch.cat((x.detach(), y.detach()))
    count = z.shape[0]
    return (z - z.mean(0)).square().sum() * (2.0 / max(count - 1, 1))


def mmd(x: Tensor, y: Tensor, gamma: Tensor, relative: bool, unbiased: bool) -> Tensor:
    """Squared MMD with the kernel ``sum_b exp(-gamma_b |u - v|^2)`` (Gretton et al. 2012, eqs. 3 and 5).

    Args:
        x: (N, D) sample.
        y: (M, D) sample.
        gamma: (B,) positive numbers, one a bandwidth.
        relative: gamma is in units of the inverse mean squared distance.
        unbiased: leave the diagonals of the xx and yy blocks out.

    Returns:
        Scalar: ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``.
    """

    def kernel_sum(u: Tensor, v: Tensor) -> Tensor:
        d2 = squared_distances(u, v)
        return sum((torch.exp(-g * d2).sum() for g in gamma.to(d2.dtype).unbind()), d2.new_zeros(()))

    if relative:
        # coinciding points: keep gamma finite
        gamma = gamma.to(x.dtype) / mean_squared_distance(x, y).clamp_min(2.6e-29)
        gamma = gamma.clamp_max(1e37)
    n, m = x.shape[0], y.shape[0]
    centre = torch.cat((x, y)).detach().mean(0)  # distances do not see it, rounding does
    x, y = x - centre, y - centre
    xx, yy, xy = kernel_sum(x, x), kernel_sum(y, y), kernel_sum(x, y)
    if unbiased:
        count = gamma.shape[0]
        return (xx - count * n) / (n * (n - 1)) + (yy - count * m) / (m * (m - 1)) - 2 * xy / (n * m)
    return xx / (n * n) + yy / (m * m) - 2 * xy / (n * m)
