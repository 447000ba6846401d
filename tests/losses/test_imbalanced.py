"""Losses for classes of different sizes against their papers' formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import ClassBalancedLoss, LDAMLoss, LogitAdjustedLoss
from thawkit.losses import functional as F

SIZES = torch.tensor([5000.0, 800.0, 100.0, 20.0, 1.0])
SHAPES = [(1, 5), (40, 5), (6, 5, 3), (2, 5, 4, 6)]


def batch(shape, seed=0, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2
    t = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)
    t[torch.rand(t.shape, generator=generator) < ignored] = -100
    return x, t.reshape(-1)[:1].clamp_min(0).reshape(t.shape) if t.numel() == 1 else t


def every_position(x, t, loss_of):
    """The loss of each position, from its logits (C,) and class; 0 where it is ignored."""
    logits = x.movedim(1, -1).reshape(-1, x.shape[1])
    rows = [
        loss_of(z, int(y)) if y != -100 else 0 * z.sum() for z, y in zip(logits, t.reshape(-1), strict=True)
    ]
    return torch.stack(rows)


def reduced(rows, t, reduction, by=None):
    if reduction == "none":
        return rows.reshape(t.shape)
    return rows.sum() / ((t != -100).sum() if by is None else by) if reduction == "mean" else rows.sum()


def effective_number_weights(beta):
    w = torch.tensor([(1 - beta) / (1 - beta**n) for n in SIZES.double().tolist()], dtype=torch.float64)
    return w / w.sum() * len(w)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_balanced_weights(beta):
    got = F.class_balanced_weights(SIZES, beta)
    torch.testing.assert_close(got.double(), effective_number_weights(beta), rtol=1e-6, atol=0)
    assert torch.equal(got, F.class_balanced_weights([int(n) for n in SIZES], beta))
    torch.testing.assert_close(
        F.class_balanced_weights(SIZES.double(), beta), effective_number_weights(beta), rtol=1e-9, atol=0
    )


def balanced_form(form, gamma, beta=0.999):
    weights = effective_number_weights(beta)

    def of(z, y):
        sign = torch.ones_like(z)
        sign[y] = -1
        terms = nn.functional.softplus(sign * z)
        if form == "softmax":
            return weights[y] * (z.logsumexp(0) - z[y])
        if form == "focal":
            terms = torch.sigmoid(sign * z) ** gamma * terms
        return weights[y] * terms.sum()

    return of


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid", "focal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_balanced_loss(shape, form, reduction):
    x, t = batch(shape)
    oracle.assert_is(
        lambda x: F.class_balanced_loss(
            x, t, SIZES.to(x.dtype), loss=form, beta=0.999, gamma=1.5, reduction=reduction
        ),
        lambda x: reduced(every_position(x, t, balanced_form(form, 1.5)), t, reduction),
        x,
        rtol=1e-5,
    )


@pytest.mark.parametrize("form", ["softmax", "sigmoid", "focal"])
def test_class_balanced_mean_where_all_targets_are_ignored(form):
    x, t = batch((6, 5))[0].requires_grad_(), torch.full((6,), -100)
    loss = F.class_balanced_loss(x, t, SIZES, loss=form)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, x)
    assert not gradient.any()


@pytest.mark.parametrize("form", ["sigmoid", "focal"])
def test_class_balanced_rows_of_half_precision_are_summed_before_they_are_rounded(form):
    x, t = batch((40, 5))
    for dtype in (torch.bfloat16, torch.float16):
        got = F.class_balanced_loss(x.to(dtype), t, SIZES, loss=form, reduction="none")
        expected = F.class_balanced_loss(x.to(dtype).float(), t, SIZES, loss=form, reduction="none")
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected)


def test_sizes_of_any_kind_are_float64_for_float64_logits():
    x, t = batch((40, 5))
    x = x.double()
    for given in (SIZES, SIZES.long(), SIZES.tolist()):
        for function in (
            F.ldam_loss,
            F.logit_adjusted_loss,
            F.class_balanced_loss,
            lambda x, t, n: F.class_balanced_loss(x, t, n, loss="focal"),
        ):
            expected = function(x, t, SIZES.double())
            torch.testing.assert_close(function(x, t, given), expected, rtol=1e-14, atol=0)


def test_a_small_float64_prior():
    prior = torch.tensor([1.0, 1e-50, 2.0, 0.5, 0.1], dtype=torch.float64)
    x, t = batch((40, 5))
    for dtype in (torch.float32, torch.float64):
        got = LogitAdjustedLoss(prior)(x.to(dtype), t)
        assert torch.equal(got, F.logit_adjusted_loss(x.to(dtype), t, prior))


def ldam_form(scale, weight=None):
    margins = SIZES.double() ** -0.25
    margins = 0.5 * margins / margins.max()

    def of(z, y):
        moved = scale * torch.cat((z[:y], z[y : y + 1] - margins[y], z[y + 1 :]))
        loss = moved.logsumexp(0) - moved[y]
        return loss if weight is None else weight[y].double() * loss

    return of


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 40)])
def test_ldam_loss(shape, weighted, reduction):
    x, t = batch(shape)
    x = x / 3
    if shape[1] == 40:
        x, t = x, t.where(t < 5, 4)
        x[:, 5:] = -1e4
    sizes = torch.cat((SIZES, torch.full((shape[1] - 5,), 1e30)))
    weight = torch.linspace(0.5, 2, shape[1]) if weighted else None
    counted = t[t != -100]
    by = None if weight is None else weight.double()[counted].sum()

    def form(x):
        x = x[:, :5]
        return reduced(every_position(x, t, ldam_form(4.0, weight)), t, reduction, by)

    oracle.assert_is(
        lambda x: F.ldam_loss(
            x,
            t,
            sizes.to(x.dtype),
            scale=4.0,
            weight=None if weight is None else weight.to(x.dtype),
            reduction=reduction,
        ),
        form,
        x,
        rtol=1e-5,
    )


def test_ldam_margins():
    margins = SIZES.double() ** -0.25
    torch.testing.assert_close(
        F.ldam_margins(SIZES).double(), 0.5 * margins / margins.max(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("tau", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_logit_adjusted_loss(shape, tau, reduction):
    x, t = batch(shape)
    prior = SIZES.double() / SIZES.double().sum()

    def of(z, y):
        moved = z + tau * prior.log()
        return moved.logsumexp(0) - moved[y]

    for given in (SIZES.double(), prior):
        oracle.assert_is(
            lambda x, g=given: F.logit_adjusted_loss(x, t, g, tau=tau, reduction=reduction),
            lambda x: reduced(every_position(x, t, of), t, reduction),
            x,
            rtol=1e-5,
            atol=1e-5 if reduction == "sum" else 2e-6,
        )


def test_modules():
    x, t = batch((40, 5))
    for form in ("softmax", "sigmoid", "focal"):
        torch.testing.assert_close(
            ClassBalancedLoss(SIZES, form, 0.99, 1.5)(x, t),
            F.class_balanced_loss(x, t, SIZES, loss=form, beta=0.99, gamma=1.5),
        )
    torch.testing.assert_close(
        LogitAdjustedLoss(SIZES, 1.5)(x, t), F.logit_adjusted_loss(x, t, SIZES, tau=1.5)
    )
    weight = torch.rand(5)
    torch.testing.assert_close(
        LDAMLoss(SIZES, 0.4, 20.0, weight)(x, t),
        F.ldam_loss(x, t, SIZES, max_margin=0.4, scale=20.0, weight=weight),
    )


def test_deferred_re_weighting_begins_with_its_epoch():
    x, t = batch((40, 5))
    loss = LDAMLoss(SIZES, reweight_from=3, beta=0.999)
    plain = F.ldam_loss(x, t, SIZES)
    for epoch in range(5):
        loss.set_epoch(epoch)
        weight = F.class_balanced_weights(SIZES, 0.999)
        expected = plain if epoch < 3 else F.ldam_loss(x, t, SIZES, weight=weight)
        torch.testing.assert_close(loss(x, t), expected)


def test_the_epoch_of_deferred_re_weighting_is_kept(tmp_path):
    x, t = batch((40, 5))
    loss = LDAMLoss(SIZES, reweight_from=3)
    loss.set_epoch(5)
    torch.save(nn.Sequential(loss).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    resumed = LDAMLoss(SIZES, reweight_from=3)
    nn.Sequential(resumed).load_state_dict(state)
    assert resumed.epoch == 5
    assert torch.equal(resumed(x, t), loss(x, t))
    earlier = {name: state[name] for name in ("0.margins", "0.weight")}
    nn.Sequential(resumed).load_state_dict(earlier)
    assert resumed.epoch == 5
    assert earlier.keys() == {"0.margins", "0.weight"}


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, t: F.class_balanced_loss(x, t, SIZES),
        lambda x, t: F.class_balanced_loss(x, t, SIZES, loss="focal"),
        lambda x, t: F.ldam_loss(x, t, SIZES),
        lambda x, t: F.logit_adjusted_loss(x, t, SIZES),
    ],
    ids=["softmax", "focal", "ldam", "adjusted"],
)
def test_surroundings(loss):
    x, t = batch((40, 5))
    oracle.assert_half_precision_is_lifted(lambda x: loss(x, t), x)
    oracle.assert_compiles(lambda x: loss(x, t), x)
    oracle.assert_layout_does_not_matter(lambda x: loss(x, t), x)
    for reduction in ("none", "mean"):
        oracle.assert_differentiable_twice(lambda x: loss(x, t[:6]), x[:6])
        assert reduction


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda x, t: F.class_balanced_loss(x, t, SIZES[:4]),
            "samples_per_class must hold one number for each",
        ),
        (lambda x, t: F.class_balanced_loss(x, t, SIZES, beta=1.0), "beta must be from 0 to below 1"),
        (lambda x, t: F.class_balanced_loss(x, t, SIZES, loss="hinge"), "loss must be one of"),
        (lambda x, t: F.class_balanced_loss(x, t, SIZES - 1), "samples_per_class must be positive"),
        (lambda x, t: F.class_balanced_loss(x, t, "many"), "samples_per_class must hold one number a class"),
        (
            lambda x, t: F.class_balanced_loss(x, t + 3, SIZES, loss="sigmoid"),
            "target must hold class indices",
        ),
        (lambda x, t: F.ldam_loss(x, t, SIZES, scale=0), "scale must be positive"),
        (lambda x, t: F.ldam_loss(x, x, SIZES), "target must hold int64 class indices"),
        (lambda x, t: F.logit_adjusted_loss(x, t, SIZES.unsqueeze(0)), "class_prior must have shape"),
        (lambda x, t: LDAMLoss(SIZES, weight=SIZES, reweight_from=2), "weight must be left out"),
        (lambda x, t: LDAMLoss(SIZES).set_epoch(-1), "epoch must be an integer of at least 0"),
        (lambda x, t: ClassBalancedLoss(SIZES, "hinge"), "loss must be one of"),
        (lambda x, t: ClassBalancedLoss(SIZES, gamma=-1), "gamma must be at least 0"),
        (lambda x, t: LDAMLoss(SIZES, scale=0), "scale must be positive"),
        (lambda x, t: LogitAdjustedLoss(SIZES, tau="1"), "tau must be a number"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call(*batch((40, 5), ignored=0))
