"""One loss of each kind that the GPU's panels compute, for their tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thawkit.losses import functional as F


def losses(device: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Functions of 20 queries, 53 keys of as many features, and a scale, by name."""
    labels = torch.arange(53, device=device) % 6
    return {
        "info_nce, labels": lambda q, k, s: F.info_nce(q, k, logit_scale=s, labels=labels),
        "info_nce, margin": lambda q, k, s: F.info_nce(q, k, logit_scale=s, false_negative_margin=0.1),
        "info_nce, weights": lambda q, k, s: F.info_nce(
            q, k, logit_scale=s, sample_weight=torch.linspace(0, 1, 20, device=device)
        ),
        "info_nce, each row": lambda q, k, s: F.info_nce(q, k, logit_scale=s, reduction="none"),
        "info_nce, hard negatives": lambda q, k, s: F.info_nce(q, k, logit_scale=s, hard_negative_beta=0.5),
        "clip": lambda q, k, s: F.clip(q, k[:20], logit_scale=s),
        "clip, each row": lambda q, k, s: F.clip(q, k[:20], logit_scale=s, reduction="none"),
        "siglip": lambda q, k, s: F.siglip(q, k[:20], logit_scale=s, logit_bias=-s),
        "siglip, each row": lambda q, k, s: F.siglip(
            q, k[:20], logit_scale=s, logit_bias=-s, reduction="none"
        ),
        "nt_xent": lambda q, k, s: F.nt_xent(q, k[:20], temperature=1 / s),
        "supcon": lambda q, k, s: F.supcon(torch.cat((q, k[20:])), labels, temperature=1 / s),
        "supcon, in": lambda q, k, s: F.supcon(
            torch.cat((q, k[20:])), labels, temperature=1 / s, variant="in"
        ),
        "linear_cross_entropy": lambda q, k, s: F.linear_cross_entropy(
            q, k[:6], labels[:20], linear_bias=s * k[:6, 0].to(s.dtype)
        ),
    }
