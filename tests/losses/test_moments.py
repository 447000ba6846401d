"""CORAL and the central moment discrepancy: values, gradients, conventions, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.losses import oracle
from thawkit import losses
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

SIZES = [(2, 2, 1), (3, 11, 4), (36, 30, 20), (101, 67, 33)]
SCALES = ("deep_coral", "tllib", "frobenius")


def two_samples(n, m, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, torch.randn(m, features, generator=generator) * 1.3 + 0.4


def coral_by_its_definition(x, y, scale):
    """Entry by entry, with covariances as numpy has them."""
    count = x.shape[1]
    centred = [sample - sample.sum(0) / len(sample) for sample in (x, y)]
    of_x, of_y = (torch.einsum("ni,nj->ij", c, c) / (len(c) - 1) for c in centred)
    difference = ((of_x - of_y) ** 2).sum()
    if scale == "frobenius":
        return difference
    if scale == "deep_coral":
        return difference / (4 * count * count)
    return difference / count**2 + ((x.mean(0) - y.mean(0)) ** 2).sum() / count


def cmd_by_its_definition(x, y, orders, interval):
    length = abs(interval[1] - interval[0])
    total = ((x.mean(0) - y.mean(0)) ** 2).sum().sqrt() / length
    for k in range(2, orders + 1):
        of_x, of_y = (((s - s.mean(0)) ** k).mean(0) for s in (x, y))
        total = total + ((of_x - of_y) ** 2).sum().sqrt() / length**k
    return total


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_coral(size, scale):
    oracle.assert_is(
        lambda x, y: F.coral(x, y, scale=scale),
        lambda x, y: coral_by_its_definition(x, y, scale),
        *two_samples(*size),
    )


def test_coral_has_numpy_covariances():
    x, y = two_samples(20, 30, 5)
    expected = np.linalg.norm(np.cov(x.double().T) - np.cov(y.double().T)) ** 2
    got = F.coral(x.double(), y.double(), scale="frobenius")
    assert got.item() == pytest.approx(expected, rel=1e-12)
    assert F.coral(x.double(), y.double()).item() == pytest.approx(expected / 100, rel=1e-12)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-1.0, 1.0), (0, 3), (2.0, 0.0)])
@pytest.mark.parametrize("orders", [1, 2, 5])
@pytest.mark.parametrize("size", [(1, 3, 3), *SIZES[1:]])
def test_cmd(size, orders, interval):
    samples = [s.sigmoid() for s in two_samples(*size)]
    oracle.assert_is(
        lambda x, y: F.cmd(x, y, orders=orders, interval=interval),
        lambda x, y: cmd_by_its_definition(x, y, orders, interval),
        *samples,
    )


LOSSES = {
    **{f"coral {scale}": lambda x, y, scale=scale: F.coral(x, y, scale=scale) for scale in SCALES},
    "cmd": lambda x, y: F.cmd(x, y),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
def test_derivatives(loss):
    oracle.assert_differentiable_twice(loss, *two_samples(5, 4, 3))


@every_loss
def test_what_all_losses_keep_to(loss):
    samples = two_samples(30, 20, 7)
    oracle.assert_layout_does_not_matter(loss, *samples)
    oracle.assert_half_precision_is_lifted(loss, *samples)
    oracle.assert_autocast_changes_nothing(loss, *samples)
    oracle.assert_compiles(loss, *samples)


@every_loss
def test_a_sample_is_at_no_distance_from_itself(loss):
    x = two_samples(20, 2, 6)[0].double().requires_grad_()
    value = loss(x, x.detach().flip(0))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-13)
    assert torch.isfinite(x.grad).all()


def test_a_common_shift_does_not_matter_to_covariances():
    x, y = (s.double() for s in two_samples(30, 20, 7))
    torch.testing.assert_close(F.coral(x + 100, y - 50), F.coral(x, y))
    far = [s.float() + 1e3 for s in (x, y)]
    torch.testing.assert_close(F.coral(*far).double(), F.coral(x, y), rtol=1e-3, atol=0)


def test_coral_takes_no_matrix_of_pairs():
    x, y = (torch.randn(20_000, 8, requires_grad=True) for _ in range(2))
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        F.coral(x, y).backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak < 10 * x.numel() * 4


def test_nan_spreads():
    x, y = two_samples(20, 30, 4)
    x[3, 1] = torch.nan
    assert F.coral(x, y).isnan()
    assert F.cmd(x, y).isnan()


def test_modules_hand_their_options_on():
    x, y = two_samples(9, 8, 5)
    for scale in SCALES:
        torch.testing.assert_close(losses.CORALLoss(scale)(x, y), F.coral(x, y, scale=scale))
    expected = F.cmd(x, y, orders=3, interval=(-1, 1))
    torch.testing.assert_close(losses.CMDLoss(3, (-1, 1))(x, y), expected)
    assert "orders=3" in repr(losses.CMDLoss(3))
    assert "scale='tllib'" in repr(losses.CORALLoss("tllib"))


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: F.coral(X[0], X), "x must have shape"),
        (lambda: F.coral(X, X[:, :1]), "number of features"),
        (lambda: F.coral(X, X.double()), "same dtype"),
        (lambda: F.coral(X, X[:1]), "y must have at least 2 rows, got 1"),
        (lambda: F.coral(X, X, scale="mean"), "scale must be one of .* got 'mean'"),
        (lambda: losses.CORALLoss("mean"), "scale must be one of"),
        (lambda: F.cmd(X[:0], X), "x must have at least 1 rows, got 0"),
        (lambda: F.cmd(X, X, orders=0), "orders must be an integer of at least 1, got 0"),
        (lambda: F.cmd(X, X, interval=(1.0, 1.0)), "interval must be two different numbers"),
        (lambda: F.cmd(X, X, interval=2.0), "interval must be two different numbers"),
        (lambda: F.cmd(X, X, interval=(0, torch.inf)), "interval must be finite"),
        (lambda: losses.CMDLoss(1.5), "orders must be an integer"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()


@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_cmd_of_scales_whose_moments_have_no_squares_in_float32(scale):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(30, 7, generator=generator) ** power * scale for power in (1, 2))
    inputs = x.requires_grad_(), y.requires_grad_()
    wide = [z.detach().double().requires_grad_() for z in inputs]
    got, expected = F.cmd(*inputs), F.cmd(*wide)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=0)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(a.double() / b.abs().max(), b / b.abs().max(), rtol=0, atol=1e-4)
