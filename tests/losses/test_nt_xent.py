"""NT-Xent against SimCLR's equation, written as loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import NTXentLoss
from thawkit.losses import functional as F


def views(rows, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(rows, features, generator=generator)
    return z1, z1 + torch.randn(rows, features, generator=generator)


def definition(z1, z2, temperature, normalized=True, reduction="mean"):
    z = [*z1, *z2]
    if normalized:
        z = [row / row.norm() for row in z]
    count = len(z1)
    rows = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = torch.stack([z[i].dot(z[j]) / temperature for j in range(2 * count) if j != i])
        rows.append(others.logsumexp(0) - z[i].dot(z[partner]) / temperature)
    rows = torch.stack(rows)
    return {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]


def loss(normalized=True, reduction="mean"):
    return lambda z1, z2, temperature: F.nt_xent(
        z1, z2, temperature=temperature, normalize=normalized, reduction=reduction
    )


TEMPERATURE = torch.tensor(0.2)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 18])
def test_nt_xent_is_its_definition(rows, normalized, reduction):
    oracle.assert_is(
        loss(normalized, reduction),
        lambda *x: definition(*x, normalized, reduction),
        *views(rows),
        TEMPERATURE if normalized else torch.tensor(3.0),
    )


def test_nt_xent_saturated():
    z1, z2 = views(12)
    z2[:5] = z1[:5]
    z2[5:8] = z1[2]  # duplicates of a pair that is not theirs
    oracle.assert_is(
        loss(reduction="none"), lambda *x: definition(*x, reduction="none"), z1, z2, torch.tensor(0.01)
    )


def test_nt_xent_is_symmetric_in_its_views():
    z1, z2 = views(7)
    torch.testing.assert_close(F.nt_xent(z1, z2), F.nt_xent(z2, z1))


def test_nt_xent_of_one_pair_is_nothing():
    z1, z2 = (x.requires_grad_() for x in views(1))
    value = F.nt_xent(z1, z2)
    value.backward()
    assert value.item() == 0
    assert not z1.grad.any()


def test_nt_xent_no_rows():
    z1, z2 = (x.requires_grad_() for x in views(0))
    assert F.nt_xent(z1, z2, reduction="none").shape == (0,)
    value = F.nt_xent(z1, z2, reduction="sum")
    value.backward()
    assert value.item() == 0
    assert z1.grad.shape == (0, 12)


def test_nt_xent_of_a_frozen_view():
    z1, z2 = views(6)
    F.nt_xent(z1.requires_grad_(), z2).backward()
    assert z1.grad.any()
    assert z2.grad is None


def test_nt_xent_twice_differentiable():
    oracle.assert_differentiable_twice(loss(), *views(3, 3), TEMPERATURE)
    oracle.assert_differentiable_twice(loss(False, "none"), *views(2, 3), torch.tensor(2.0))


def test_nt_xent_keeps_to_what_all_losses_do():
    inputs = (*views(9), TEMPERATURE)
    oracle.assert_layout_does_not_matter(loss(), *inputs)
    oracle.assert_autocast_changes_nothing(loss(), *inputs)
    oracle.assert_half_precision_is_lifted(loss(), *inputs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_nt_xent_compiles(backend):
    oracle.assert_compiles(loss(), *views(9), TEMPERATURE, backend=backend)


def test_nt_xent_module_calls_the_function():
    z1, z2 = views(9)
    module = NTXentLoss(2.0, normalize=False, reduction="none")
    assert not module.state_dict()
    torch.testing.assert_close(module(z1, z2), loss(False, "none")(z1, z2, 2.0), rtol=0, atol=0)


def test_nt_xent_module_learns_its_temperature():
    module = NTXentLoss(nn.Parameter(torch.tensor(0.3)))
    assert list(module.state_dict()) == ["temperature"]
    module(*views(9)).backward()
    assert module.temperature.grad is not None


Z = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("z1", "z2", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(3), {}, "z1 must have shape"),
        (Z, torch.zeros(3, 5), {}, "z2 must have the shape of z1"),
        (Z, torch.zeros(3, 4).half(), {}, "z2 must have the dtype of z1"),
        (Z, torch.zeros(3, 4, device="meta"), {}, "z2 is on meta but z1 is on cpu"),
        (
            torch.zeros(3, 4),
            torch.zeros(3, 4),
            {"temperature": 0.0},
            "temperature must be positive and finite",
        ),
        (Z, Z, {"temperature": math.inf}, "temperature must be positive"),
        (Z, Z, {"temperature": None}, "temperature must be a number"),
        (
            torch.zeros(3, 4),
            torch.zeros(3, 4),
            {"temperature": torch.tensor(-1.0)},
            "temperature must be pos",
        ),
        (Z, Z, {"temperature": torch.ones(2)}, "temperature must have one"),
        (Z, Z, {"reduction": "max"}, "reduction must be one of"),
        (torch.zeros(0, 4), torch.zeros(0, 4), {}, "z1 has no rows"),
    ],
)
def test_nt_xent_bad_input(z1, z2, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.nt_xent(z1, z2, **options)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor(0.0)])
def test_nt_xent_module_bad_temperature(temperature):
    with pytest.raises(ThawkitError, match="temperature must be positive and finite"):
        NTXentLoss(temperature)


@pytest.mark.parametrize("loss", ["nt_xent", "clip"])
def test_rows_whose_logits_are_of_very_different_size(loss):
    """The powers of one row's logits are all 0 relative to the largest logit of another."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(24, 16, generator=generator) for _ in range(2))
    x[::2] *= 1e-3
    if loss == "nt_xent":
        y[::2] *= 1e-3
    options = {"temperature": 0.13} if loss == "nt_xent" else {"logit_scale": 8.0}

    def function(x, y):
        return getattr(F, loss)(x, y, normalize=False, **options)

    got = oracle.values_and_gradients(function, x, y)
    truth = oracle.values_and_gradients(function, x.double(), y.double())
    for mine, exact in zip(got, truth, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-5)
