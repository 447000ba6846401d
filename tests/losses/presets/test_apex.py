"""apex's focal loss, which runs on CUDA only: its documented formula, in float64, and the stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses.presets.apex import FocalLoss, focal_loss


def batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    return x, torch.randint(-2, shape[-1], shape[:-1], generator=generator)


def formula(x, t, positives, classes, alpha, gamma, smoothing):
    """Hard targets weigh and focus; the cross-entropy's are smoothed over the two of a sigmoid."""
    total = 0
    for z, y in zip(x.reshape(-1, x.shape[-1]), t.reshape(-1).tolist(), strict=True):
        if y == -2:
            continue
        for c in range(classes):
            p = torch.sigmoid(z[c])
            positive = c == y
            weight = alpha * (1 - p) ** gamma if positive else (1 - alpha) * p**gamma
            u = (1 - smoothing if positive else 0) + smoothing / 2
            total = total + weight * (
                u * nn.functional.softplus(-z[c]) + (1 - u) * nn.functional.softplus(z[c])
            )
    return total / positives


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("shape", "classes"), [((9, 8), 8), ((9, 8), 5), ((2, 6, 16), 13), ((1, 1), 1)])
def test_values(shape, classes, gamma, smoothing):
    x, t = batch(shape)
    t = t.clamp_max(classes - 1)
    positives = torch.tensor([3.0])
    oracle.assert_is(
        lambda x: focal_loss(x, t, positives.to(x.dtype), classes, 0.25, gamma, smoothing),
        lambda x: formula(x, t, 3.0, classes, 0.25, gamma, smoothing) + 0 * x.sum(),
        x,
        rtol=1e-5,
        atol=2e-6,
    )


def test_a_second_backward_pass_gives_the_same_gradient():
    x, t = batch((9, 8))
    x.requires_grad_()
    loss = FocalLoss.apply(x, t, torch.tensor(2.0), 8, 0.25, 2.0)
    first, second = (torch.autograd.grad(loss * 3, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_half_precision_keeps_small_gradients_until_they_are_divided():
    x, t = batch((9, 8))
    for dtype in (torch.bfloat16, torch.float16):
        halves = x.to(dtype).requires_grad_()
        loss = focal_loss(halves, t, torch.tensor(100.0), 8, 0.25, 2.0)
        assert loss.dtype == torch.float32
        (got,) = torch.autograd.grad(loss, halves)
        wide = halves.detach().float().requires_grad_()
        (expected,) = torch.autograd.grad(focal_loss(wide, t, torch.tensor(100.0), 8, 0.25, 2.0), wide)
        torch.testing.assert_close(got.float(), expected, rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda x, t: focal_loss(x, t[:3], torch.ones(1), 8, 0.25, 2.0),
            "cls_targets_at_level must have the",
        ),
        (lambda x, t: focal_loss(x, t.float(), torch.ones(1), 8, 0.25, 2.0), "must be a tensor of int64"),
        (lambda x, t: focal_loss(x, t, 1.0, 8, 0.25, 2.0), "num_positive_sum must be a tensor of one number"),
        (lambda x, t: focal_loss(x, t, torch.ones(1), 9, 0.25, 2.0), "num_real_classes must be at most 8"),
        (lambda x, t: focal_loss(x, t, torch.ones(1), 8, 0.25, 2.0, 2.0), "label_smoothing must be from 0"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call(*batch((9, 8)))
