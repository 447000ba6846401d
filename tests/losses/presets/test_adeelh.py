"""AdeelH's FocalLoss of torch.hub, which is no package: its formula in float64, and the stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.losses.presets.adeelh import FocalLoss, focal_loss

SHAPES = [(1, 3), (40, 7), (3, 7, 5), (2, 21, 6, 7)]


def batch(shape, ignored, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    positions = shape[:1] + shape[2:]
    t = torch.randint(0, shape[1], positions, generator=generator)
    some = torch.rand(positions, generator=generator) < 0.3
    some.view(-1)[0] = False
    return x, t.masked_fill(some, ignored).index_fill(0, torch.tensor([0]), 0)


def formula(x, t, alpha, gamma, reduction, ignored):
    """Class axis last, ignored targets taken out, then each target's loss; a mean is over what is left."""
    logits, y = x.movedim(1, -1).reshape(-1, x.shape[1]), t.reshape(-1)
    logits, y = logits[y != ignored], y[y != ignored]
    log_p = nn.functional.log_softmax(logits, -1).gather(1, y.unsqueeze(1)).squeeze(1)
    rows = -((1 - log_p.exp()) ** gamma) * log_p
    if alpha is not None:
        rows = rows * alpha[y]
    return rows if reduction == "none" else getattr(rows, reduction)()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape, weighted, gamma, reduction):
    for ignored in (-100, 1):
        x, t = batch(shape, ignored)
        alpha = torch.linspace(0.5, 1.5, shape[1]) if weighted else None
        oracle.assert_is(
            lambda x, t=t, a=alpha, i=ignored: FocalLoss(
                None if a is None else a.to(x.dtype), gamma, reduction, i
            )(x, t),
            lambda x, t=t, a=alpha, i=ignored: formula(
                x, t, None if a is None else a.double(), gamma, reduction, i
            ),
            x,
            rtol=1e-5,
            atol=2e-6,
        )


def test_nothing_but_ignored_targets():
    x = torch.randn(4, 3, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        loss = FocalLoss(reduction=reduction)(x, torch.full((4,), -100))
        assert loss == 0
        assert loss.shape == ()
        loss.backward()
    assert not x.grad.any()


def test_the_factory_and_the_state():
    loss = focal_loss(alpha=[0.2, 0.8], gamma=2)
    assert loss.alpha.dtype == torch.float32
    assert loss.state_dict().keys() == {"nll_loss.weight"}
    assert repr(FocalLoss(gamma=2)) == "FocalLoss(alpha=None, gamma=2, ignore_index=-100, reduction='mean')"
    x, t = torch.randn(5, 2), torch.randint(0, 2, (5,))
    expected = formula(x, t, torch.tensor([0.2, 0.8]), 2, "mean", -100)
    torch.testing.assert_close(loss(x, t), expected)
