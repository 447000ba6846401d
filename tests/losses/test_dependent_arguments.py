"""Gradients of losses whose second argument was computed from the first, with a graph of them and without."""

from __future__ import annotations

import pytest
import torch

from thawkit.losses import functional as F

LABELS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))

LOSSES = {
    "info_nce": lambda x, y: F.info_nce(x, y),
    "info_nce rows": lambda x, y: F.info_nce(x, y, reduction="none").square().mean(),
    "clip": lambda x, y: F.clip(x, y),
    "clip with its scale": lambda x, y: F.clip(x, y, logit_scale=y.square().mean()),
    "siglip": lambda x, y: F.siglip(x, y),
    "supcon": lambda x, y: F.supcon(x, LABELS, ref=y, ref_labels=LABELS),
    "supcon of itself": lambda x, y: F.supcon(x, LABELS, variant="in"),
    "nt_xent": lambda x, y: F.nt_xent(x, y),
    "nt_xent_labels": lambda x, y: F.nt_xent_labels(x, LABELS, temperature=0.5, ref=y, ref_labels=LABELS),
    "nt_xent_labels of itself": lambda x, y: F.nt_xent_labels(x, LABELS, temperature=0.5),
    "ranking": lambda x, y: F.multiple_negatives_ranking(
        x, y, directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    ),
    "triplet": lambda x, y: F.triplet_margin(x, LABELS, ref=y, ref_labels=LABELS),
    "contrastive": lambda x, y: F.contrastive(x, LABELS),
    "mmd": lambda x, y: F.mmd(x, y[:30]),
    "mmd with its bandwidths": lambda x, y: F.mmd(x, y[:30], bandwidths=1 + y[:2, 0].square()),
    "joint mmd": lambda x, y: F.joint_mmd([x, y], [y[:30], x[:30]], kernel=["imq", "rbf"]),
    "local mmd": lambda x, y: F.local_mmd(x, y[:30], LABELS, torch.eye(3, device=x.device).repeat(10, 1)),
    "linear_cross_entropy": lambda x, y: F.linear_cross_entropy(x, y[:5], LABELS, linear_bias=x[:5, 0]),
}


def derivatives(loss, x, mix, dtype):
    """The gradient, the same where a graph of it is asked for, and the gradient of its square."""

    def value(x):
        return loss(x, x @ mix.to(dtype))

    x = x.to(dtype).requires_grad_()
    (plain,) = torch.autograd.grad(value(x), x)
    (graphed,) = torch.autograd.grad(value(x), x, create_graph=True)
    (second,) = torch.autograd.grad(graphed.square().sum(), x)
    return plain.double(), graphed.detach().double(), second.double()


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_that_depend_on_each_other(name):
    generator = torch.Generator().manual_seed(0)
    x, mix = torch.randn(40, 8, generator=generator), torch.randn(8, 8, generator=generator)
    exact = derivatives(LOSSES[name], x, mix, torch.float64)
    got = derivatives(LOSSES[name], x, mix, torch.float32)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * b.abs().max().item())
