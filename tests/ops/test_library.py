"""What the operators share: gradients that a caller may do with as they please."""

from __future__ import annotations

import pytest
import torch

from thawkit.losses import functional as F


@pytest.mark.parametrize(
    "loss",
    ["info_nce", "clip", "siglip", "nt_xent", "triplet_margin", "contrastive", "mmd", "sigmoid_focal_loss"],
)
def test_a_gradient_may_be_overwritten_and_the_graph_used_again(loss):
    x, y = torch.randn(12, 4, requires_grad=True), torch.rand(12, 4)
    if loss in ("triplet_margin", "contrastive"):
        y = torch.arange(12) // 3
    options = {"reduction": "mean"} if loss == "sigmoid_focal_loss" else {}
    value = getattr(F, loss)(x, y, **options)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(second, expected)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x)
