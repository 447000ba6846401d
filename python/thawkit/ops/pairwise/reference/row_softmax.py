"""The definition of the softmax cross-entropy of rows."""

from __future__ import annotations

import math
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
    similarity = q @ k.t()
    logits = scale.to(q.dtype) * similarity
    if bias is not None:
        logits = logits + bias.to(q.dtype)
    rows, number = torch.arange(q.shape[0], device=q.device), torch.arange(k.shape[0], device=q.device)
    all_have_positives = target is None
    if target is None:
        target = rows + columns.offset
    has_positive = target >= 0
    own = target.clamp_min(0)[:, None]
    positive = logits.gather(1, own).squeeze(1)
    out = torch.zeros(logits.shape, dtype=torch.bool, device=q.device)
    if columns.excluded is not None:
        out = out | (number == (rows + columns.excluded)[:, None])
    if columns.labels != "ignored":
        assert row_labels is not None
        assert key_labels is not None
        out = out | ((row_labels[:, None] == key_labels) == (columns.labels == "drop same"))
    own_column = number == target[:, None]
    maximum = logits.detach().masked_fill(out & ~own_column, -torch.inf)
    maximum = maximum.amax(1) if k.shape[0] else positive.detach()
    if columns.margin < math.inf:
        most = similarity.gather(1, own) + columns.margin
        out = out | ((similarity > most) & has_positive[:, None])
    out = out & ~own_column
    logits = logits.masked_fill(out, -torch.inf)
    if all_have_positives:
        loss = -logits.log_softmax(1).gather(1, own).squeeze(1)
        return loss, positive.detach(), maximum
    # each kind of row apart: what one gives for the other may be no number, and nor is 0 times its gradient
    nothing = out.all(1)
    log_sum = logits.masked_fill((has_positive | nothing)[:, None], 0.0).logsumexp(1)
    log_sum = log_sum.masked_fill(nothing, -torch.inf)
    log_p = logits.masked_fill(~has_positive[:, None], 0.0).log_softmax(1)
    loss = torch.where(has_positive, -log_p.gather(1, own).squeeze(1), log_sum)
    return loss, positive.detach().masked_fill(~has_positive, torch.nan), maximum
