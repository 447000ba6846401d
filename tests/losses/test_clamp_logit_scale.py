"""A learned scale with a bound: how it clamps, and that it finds its way back."""

from __future__ import annotations

import pytest
import torch

from thawkit.errors import ThawkitError
from thawkit.losses import ClipLoss, SigLipLoss
from thawkit.losses import functional as F


@pytest.mark.parametrize(
    ("scale", "upstream", "gradient"),
    [(50.0, 2.0, 2.0), (50.0, -2.0, -2.0), (100.0, -2.0, -2.0), (120.0, 2.0, 2.0), (120.0, -2.0, 0.0)],
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_only_a_gradient_that_leads_back_passes_beyond_the_bound(scale, upstream, gradient, shape):
    x = torch.full(shape, scale, requires_grad=True)
    y = F.clamp_logit_scale(x, 100.0)
    assert y.shape == shape
    assert y.item() == min(scale, 100.0)
    (g,) = torch.autograd.grad(y, x, torch.full(shape, upstream))
    assert g.item() == gradient


def test_a_scale_beyond_the_bound_comes_back():
    torch.manual_seed(0)
    image, text = torch.randn(2, 16, 8)  # unrelated: the smaller the scale, the smaller the loss
    scale = torch.nn.Parameter(torch.tensor(130.0))
    optimizer = torch.optim.SGD([scale], lr=1000.0)
    loss = ClipLoss(max_logit_scale=100.0)
    for _ in range(20):
        optimizer.zero_grad()
        loss(image, text, scale).backward()
        optimizer.step()
    assert scale.item() < 100


@pytest.mark.parametrize("scale", [130.0, torch.tensor(130.0)])
def test_modules_clamp(scale):
    torch.manual_seed(0)
    image, text = torch.randn(2, 6, 8)
    assert torch.equal(ClipLoss(max_logit_scale=100)(image, text, scale), ClipLoss()(image, text, 100.0))
    clamped = SigLipLoss(max_logit_scale=20.0)(image, text, scale, -3.0)
    assert torch.equal(clamped, SigLipLoss()(image, text, 20.0, -3.0))


def test_transforms():
    function = lambda s: F.clamp_logit_scale(s.exp(), 100.0)
    x = torch.tensor([2.0, 9.0])
    assert torch.equal(torch.func.vmap(torch.func.grad(function))(x), torch.tensor([2.0, 9.0]).exp())
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(torch.tensor(9.0)).item() == 100.0
    leaf = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, leaf)
    assert torch.autograd.gradgradcheck(function, leaf)


@pytest.mark.parametrize("maximum", [0.0, -1.0, float("nan"), float("inf"), True, "100"])
def test_bad_bounds(maximum):
    with pytest.raises(ThawkitError, match="maximum"):
        F.clamp_logit_scale(torch.tensor(1.0), maximum)
    with pytest.raises(ThawkitError, match="max_logit_scale"):
        ClipLoss(max_logit_scale=maximum)


@pytest.mark.parametrize("scale", [3.0, torch.ones(2)])
def test_bad_scales(scale):
    with pytest.raises(ThawkitError, match="logit_scale"):
        F.clamp_logit_scale(scale, 100.0)
