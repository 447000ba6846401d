"""Cross-entropy and binary cross-entropy against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import BCEWithLogitsLoss, CrossEntropyLoss
from thawkit.losses import functional as F

torchs = nn.functional.cross_entropy
torchs_binary = nn.functional.binary_cross_entropy_with_logits
SHAPES = [(1, 3), (40, 7), (9, 33), (3, 7, 5), (2, 21, 6, 7)]


def batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    return x, torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_indices(shape, weighted, smoothing, reduction):
    x, t = batch(shape)
    weight = torch.linspace(0.3, 1.7, shape[1]) if weighted else None
    for ignored in (-100, 1):
        target = t.masked_fill(torch.arange(t.numel()).reshape(t.shape) % 3 == 1, ignored)
        target.view(-1)[0] = 0
        options = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing}
        oracle.assert_is(
            lambda x, t=target, o=options: F.cross_entropy(x, t, wide(weight, x), **o),
            lambda x, t=target, o=options: torchs(x, t, wide(weight, x), **o),
            x,
            rtol=1e-5,
            atol=2e-6,
        )


def wide(weight, x):
    return None if weight is None else weight.to(x.dtype)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities(shape, reduction):
    x, _ = batch(shape)
    p = torch.randn(shape, generator=torch.Generator().manual_seed(1)).softmax(1)
    weight = torch.linspace(0.3, 1.7, shape[1])
    options = {"reduction": reduction, "label_smoothing": 0.1}
    oracle.assert_is(
        lambda x: F.cross_entropy(x, p.to(x.dtype), wide(weight, x), **options),
        lambda x: torchs(x, p.double(), wide(weight, x), **options),
        x,
        rtol=1e-5,
        atol=2e-6,
    )


def test_one_sample_without_a_batch():
    x = torch.randn(7)
    for t in (torch.tensor(3), x.softmax(0)):
        for reduction in ("none", "mean"):
            torch.testing.assert_close(
                F.cross_entropy(x, t, reduction=reduction), torchs(x, t, reduction=reduction)
            )


def test_the_mean_of_nothing_is_torchs():
    x, t = batch((6, 5))
    x.requires_grad_()
    for weight in (None, torch.rand(5)):
        loss = F.cross_entropy(x, torch.full_like(t, -100), weight)
        assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss, x)
        assert not gradient.any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (40, 33), (3, 4, 5)])
def test_binary(shape, reduction):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 3
    t = torch.rand(shape, generator=generator)
    weights = [None]
    if shape:
        vector = torch.linspace(0.3, 1.7, shape[-1])
        weights += [vector, torch.rand(shape), torch.rand(shape[:1] + (1,) * (len(shape) - 1))]
    for weight in weights:
        for pos_weight in (None, vector * 2) if shape else (None,):
            oracle.assert_is(
                lambda x, w=weight, p=pos_weight: F.binary_cross_entropy_with_logits(
                    x, t, wide(w, x), pos_weight=wide(p, x), reduction=reduction
                ),
                lambda x, w=weight, p=pos_weight: torchs_binary(
                    x, t.double(), wide(w, x), pos_weight=wide(p, x), reduction=reduction
                ),
                x,
                rtol=1e-5,
                atol=2e-6,
            )


def test_modules():
    x, t = batch((40, 7))
    weight = torch.rand(7)
    loss = CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    theirs = nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    assert loss.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(loss(x, t), theirs(x, t))
    binary = BCEWithLogitsLoss(weight, pos_weight=weight * 2)
    others = nn.BCEWithLogitsLoss(weight, pos_weight=weight * 2)
    assert binary.state_dict().keys() == others.state_dict().keys()
    hot = nn.functional.one_hot(t, 7).float()
    torch.testing.assert_close(binary(x, hot), others(x, hot))


def test_surroundings():
    x, t = batch((40, 7))
    for loss in (
        lambda x: F.cross_entropy(x, t, torch.linspace(0.5, 1.5, 7)),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.nn.functional.one_hot(t, 7)),
    ):
        oracle.assert_half_precision_is_lifted(loss, x)
        oracle.assert_compiles(loss, x)
        oracle.assert_layout_does_not_matter(loss, x)
        oracle.assert_autocast_changes_nothing(loss, x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, t: F.cross_entropy(x, t, torch.ones(4)), r"alpha must have shape \(7,\)|weight"),
        (lambda x, t: F.cross_entropy(x, t + 7), "target must hold class indices 0 to 6"),
        (lambda x, t: F.cross_entropy(x.long(), t), "input must be float32"),
        (lambda x, t: F.binary_cross_entropy_with_logits(x, t), "target must have the shape of input"),
        (lambda x, t: F.binary_cross_entropy_with_logits(x, x, torch.ones(3)), "weight must broadcast"),
        (lambda x, t: CrossEntropyLoss(reduction="avg"), "reduction must be one of"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call(*batch((40, 7)))
