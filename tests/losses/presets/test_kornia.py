"""kornia's focal losses and their stand-ins."""

from __future__ import annotations

import pytest
import torch

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets import kornia as ours

SHAPES = [(1, 2), (9, 5), (3, 4, 5), (2, 21, 6, 7)]


@pytest.fixture(scope="module")
def kornia():
    return peers.library("kornia.losses")


def batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2
    positions = shape[:1] + shape[2:]
    t = torch.randint(0, shape[1], positions, generator=generator)
    t[torch.rand(positions, generator=generator) < 0.2] = -100
    soft = torch.rand(shape, generator=generator)
    return x, t, soft.masked_fill(torch.rand(shape, generator=generator) < 0.2, -100)


def in_dtype(options, x):
    return {n: o.to(x.dtype) if isinstance(o, torch.Tensor) else o for n, o in options.items()}


def test_arguments(kornia):
    for name in ("focal_loss", "binary_focal_loss_with_logits"):
        peers.assert_same_arguments(getattr(ours, name), getattr(kornia, name))
    for name in ("FocalLoss", "BinaryFocalLossWithLogits"):
        mine, theirs = getattr(ours, name), getattr(kornia, name)
        peers.assert_same_arguments(mine.__init__, theirs.__init__)
        peers.assert_same_arguments(mine.forward, theirs.forward)
        weight = torch.ones(3)
        assert mine(0.25, weight=weight).state_dict() == theirs(0.25, weight=weight).state_dict() == {}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_form(kornia, shape, gamma, alpha, reduction):
    x, t, _ = batch(shape)
    for weight in (None, torch.linspace(0.5, 1.5, shape[1])):
        options = {"weight": weight}
        peers.assert_same(
            lambda x, o=options: ours.focal_loss(x, t, alpha, gamma, reduction, **in_dtype(o, x)),
            lambda x, o=options: kornia.focal_loss(x, t, alpha, gamma, reduction, **in_dtype(o, x)),
            x,
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_form_with_soft_and_ignored_targets(kornia, shape, gamma, alpha, reduction):
    x, _, t = batch(shape)
    vector = torch.linspace(0.5, 1.5, shape[1])
    for options in ({}, {"pos_weight": vector * 2, "weight": vector}):
        peers.assert_same(
            lambda x, o=options: ours.binary_focal_loss_with_logits(
                x, t.to(x.dtype), alpha, gamma, reduction, **in_dtype(o, x)
            ),
            lambda x, o=options: kornia.binary_focal_loss_with_logits(
                x, t.to(x.dtype), alpha, gamma, reduction, **in_dtype(o, x)
            ),
            x,
        )


def test_another_number_is_ignored_or_none(kornia):
    x, t, soft = batch((9, 5))
    t, soft = t.where(t != -100, 3), soft.where(soft != -100, 1)
    for ignored in (3, None):
        for reduction in ("none", "mean"):
            options = {"ignore_index": ignored, "reduction": reduction}
            torch.testing.assert_close(
                ours.focal_loss(x, t, 0.25, **options), kornia.focal_loss(x, t, 0.25, **options)
            )
            options["ignore_index"] = None if ignored is None else 1
            torch.testing.assert_close(
                ours.binary_focal_loss_with_logits(x, soft, **options),
                kornia.binary_focal_loss_with_logits(x, soft, **options),
            )
    with pytest.raises(ThawkitError, match="target must hold class indices"):
        ours.focal_loss(x, t.masked_fill(t == 3, -100), 0.25, ignore_index=None)


def test_modules(kornia):
    x, t, soft = batch((9, 5))
    weight = torch.rand(5)
    for name, target in (("FocalLoss", t), ("BinaryFocalLossWithLogits", soft)):
        options = {"gamma": 1.5, "reduction": "mean", "weight": weight}
        got = getattr(ours, name)(0.3, **options)(x, target)
        torch.testing.assert_close(got, getattr(kornia, name)(0.3, **options)(x, target))


def test_weights_may_be_learned():
    x, t, soft = batch((9, 5))
    for name, target in (("FocalLoss", t), ("BinaryFocalLossWithLogits", soft)):
        weight = torch.nn.Parameter(torch.ones(5))
        loss = getattr(ours, name)(0.3, reduction="sum", weight=weight)
        loss(x, target).backward()
        assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, t, s: ours.focal_loss(x, t, 1.5), "alpha must be in"),
        (lambda x, t, s: ours.focal_loss(x, s, 0.5), "target must hold int64 classes"),
        (lambda x, t, s: ours.focal_loss(x, t, 0.5, weight=torch.ones(4)), r"weight must have shape \(5,\)"),
        (lambda x, t, s: ours.focal_loss(x[0], t, 0.5), r"pred must have shape \(N, C, ...\)"),
        (lambda x, t, s: ours.binary_focal_loss_with_logits(x, t), "target must have the shape of pred"),
        (lambda x, t, s: ours.binary_focal_loss_with_logits(x, s, -1), r"alpha must be in \[0, 1\] or None"),
        (
            lambda x, t, s: ours.binary_focal_loss_with_logits(x, s, pos_weight=torch.ones(4)),
            r"pos_weight must have shape \(5,\)",
        ),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call(*batch((9, 5)))
