"""torchvision's sigmoid focal loss and its stand-in."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.torchvision import sigmoid_focal_loss


def test_arguments():
    peers.assert_same_arguments(sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, -1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (3, 4, 40)])
def test_values(shape, gamma, alpha, reduction):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 3
    soft = torch.rand(shape, generator=generator)
    for t in (soft, (soft < 0.3).float()):
        peers.assert_same(
            lambda x, t=t: sigmoid_focal_loss(x, t.to(x.dtype), alpha, gamma, reduction),
            lambda x, t=t: torchvision.ops.sigmoid_focal_loss(x, t.to(x.dtype), alpha, gamma, reduction),
            x,
        )


def test_refuses_what_torchvision_refuses():
    x = torch.zeros(3)
    for alpha in (-0.5, 1.5):
        with pytest.raises(ThawkitError, match=r"alpha must be in \[0, 1\] or -1"):
            sigmoid_focal_loss(x, x, alpha)
        with pytest.raises(ValueError, match="alpha"):
            torchvision.ops.sigmoid_focal_loss(x, x, alpha)
    with pytest.raises(ThawkitError, match="targets must have the shape of inputs"):
        sigmoid_focal_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
