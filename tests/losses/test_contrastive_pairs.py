"""The contrastive losses of pairs against loops over pairs, and torch's loss of given ones, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_embedding_loss

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import ContrastiveLoss, CosineContrastiveLoss
from thawkit.losses import functional as F

MARGINS = torch.tensor(0.3), torch.tensor(1.2)


def batch(rows, features=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=generator) / math.sqrt(features)
    return z, torch.randint(0, classes, (rows,), generator=generator)


# ---- all pairs of a batch


def definition(z, positive_margin, negative_margin, labels, distance="euclidean", reduction="mean"):
    rows, losses = [0 * z.sum() for _ in z], []
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            d = (z[i] - z[j]).norm()
            if distance == "cosine":
                d = 1 - z[i].dot(z[j]) / (z[i].norm() * z[j].norm())
            gap = d - positive_margin if labels[i] == labels[j] else negative_margin - d
            losses.append(gap.clamp_min(0) ** 2)
            rows[i], rows[j] = rows[i] + losses[-1] / 2, rows[j] + losses[-1] / 2
    total = sum(losses, 0 * z.sum())
    return {"none": torch.stack(rows), "sum": total, "mean": total / max(len(losses), 1)}[reduction]


def loss(labels, distance="euclidean", reduction="mean"):
    return lambda z, positive, negative: F.contrastive(
        z,
        labels,
        positive_margin=positive,
        negative_margin=negative,
        distance=distance,
        reduction=reduction,
    )


def assert_is_its_definition(z, labels, *options, margins=MARGINS, **tolerance):
    oracle.assert_is(
        loss(labels, *options), lambda *x: definition(*x, labels, *options), z, *margins, **tolerance
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_contrastive_is_its_definition(rows, distance, reduction):
    assert_is_its_definition(*batch(rows), distance, reduction)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [-7, 2**62, 3, 3, 3]])
def test_contrastive_unusual_labels(labels):
    assert_is_its_definition(batch(5)[0], torch.tensor(labels))


def test_contrastive_defaults():
    z, labels = batch(9)
    expected = definition(z.double(), 0.0, 1.0, labels).float()
    torch.testing.assert_close(F.contrastive(z, labels), expected)


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_contrastive_of_equal_rows_has_finite_gradients(far):
    z, labels = torch.zeros(4, 6) + far, torch.tensor([0, 0, 1, 2])
    value, dz, _, dnegative = oracle.values_and_gradients(loss(labels, reduction="sum"), z, *MARGINS)
    assert value.item() == pytest.approx(5 * 1.2**2)
    assert not dz.any()
    assert dnegative.item() == pytest.approx(0.5 * 5 * 2 * 1.2)  # 0.5 from upstream


def test_contrastive_of_rows_that_occur_twice():
    z, labels = batch(12)
    z = torch.cat((z, z[:6]))
    labels = torch.cat((labels, labels[:3], labels[3:6].flip(0)))
    assert_is_its_definition(z, labels, "euclidean", "none", atol=1e-4)


def test_contrastive_far_from_the_origin():
    z, labels = batch(14)
    assert_is_its_definition(z + 100, labels, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_contrastive_does_not_hide_what_is_not_finite(value):
    z, labels = batch(9)
    z[3, 2] = value
    assert loss(labels)(z, 0.0, 1.0).isnan()


def test_contrastive_no_rows():
    z, labels = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert loss(labels, reduction="none")(z, 0.0, 1.0).shape == (0,)
    value = loss(labels, reduction="sum")(z, 0.0, 1.0)
    assert value.item() == 0
    assert torch.autograd.grad(value, z)[0].shape == (0, 4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_contrastive_twice_differentiable(distance):
    z, labels = batch(5, 3)
    for reduction in ("mean", "none"):
        oracle.assert_differentiable_twice(loss(labels, distance, reduction), z, *MARGINS)


def test_contrastive_keeps_to_what_all_losses_do():
    z, labels = batch(9)
    inputs = z, torch.tensor(0.25), torch.tensor(1.5)
    oracle.assert_layout_does_not_matter(loss(labels), *inputs)
    oracle.assert_autocast_changes_nothing(loss(labels), *inputs)
    oracle.assert_half_precision_is_lifted(loss(labels), *inputs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_contrastive_compiles(backend):
    z, labels = batch(9)
    oracle.assert_compiles(loss(labels), z, *MARGINS, backend=backend)


def test_contrastive_module_calls_the_function():
    z, labels = batch(9)
    module = ContrastiveLoss(0.1, 0.8, distance="cosine", reduction="none")
    assert not module.state_dict()
    expected = loss(labels, "cosine", "none")(z, 0.1, 0.8)
    torch.testing.assert_close(module(z, labels), expected, rtol=0, atol=0)


def test_contrastive_module_keeps_a_margin_that_is_a_parameter():
    module = ContrastiveLoss(negative_margin=nn.Parameter(torch.tensor(1.0)))
    assert list(module.state_dict()) == ["negative_margin"]
    module(*batch(9)).backward()
    assert module.negative_margin.grad > 0


Z, LABELS = torch.zeros(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("z", "labels", "options", "says"),
    [
        (torch.zeros(3), LABELS, {}, "embeddings must have shape"),
        (Z, LABELS.float(), {}, "labels must hold integers"),
        (Z, LABELS[:2], {}, r"labels must have shape \(3,\)"),
        (Z, LABELS, {"positive_margin": math.nan}, "positive_margin must be finite"),
        (Z, LABELS, {"negative_margin": torch.zeros(2)}, "negative_margin must have one element"),
        (Z, LABELS, {"distance": "l1"}, "distance must be one of 'euclidean', 'cosine', got 'l1'"),
        (Z, LABELS, {"reduction": "mean_nonzero"}, "reduction must be one of"),
        (Z[:0], LABELS[:0], {}, "embeddings has no rows"),
    ],
)
def test_contrastive_bad_input(z, labels, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.contrastive(z, labels, **options)


@pytest.mark.parametrize("argument", ["positive_margin", "negative_margin", "distance"])
def test_contrastive_module_bad_arguments(argument):
    with pytest.raises(ThawkitError, match=f"{argument} must be"):
        ContrastiveLoss(**{argument: "x"})


# ---- given pairs


def given(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = torch.randn(2, rows, 6, generator=generator).unbind()
    return x1, x2, torch.randint(0, 2, (rows,), generator=generator) * 2 - 1


def cosine_loss(target, reduction="mean"):
    return lambda x1, x2, margin: F.cosine_contrastive(x1, x2, target, margin=margin, reduction=reduction)


def cosine_definition(x1, x2, margin, target, reduction):
    rows = []
    for a, b, sign in zip(x1, x2, target, strict=True):
        cosine = a.dot(b) / (a.norm() * b.norm())
        rows.append(1 - cosine if sign == 1 else (cosine - margin).clamp_min(0))
    rows = torch.stack(rows)
    return rows if reduction == "none" else getattr(rows, reduction)()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_cosine_contrastive_is_its_definition(rows, margin, reduction):
    x1, x2, target = given(rows)
    oracle.assert_is(
        cosine_loss(target, reduction),
        lambda x1, x2, m: cosine_definition(x1, x2, m, target, reduction),
        x1,
        x2,
        torch.tensor(margin),
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int8, torch.float32])
def test_cosine_contrastive_is_torchs(target_dtype, reduction):
    x1, x2, target = given(30)
    x1[2] = 0
    x1[3] = x2[3] = 0
    x2[4:8] = x1[4:8]
    x2[8:12] = -x1[8:12]
    got = oracle.values_and_gradients(
        lambda *x: F.cosine_contrastive(*x, target.to(target_dtype), margin=0.3, reduction=reduction), x1, x2
    )
    theirs = oracle.values_and_gradients(
        lambda *x: cosine_embedding_loss(*x, target, margin=0.3, reduction=reduction), x1, x2
    )
    torch.testing.assert_close(got, theirs)


def test_cosine_contrastive_no_rows():
    x1, x2, target = given(0)
    assert F.cosine_contrastive(x1, x2, target, reduction="none").shape == (0,)
    assert F.cosine_contrastive(x1, x2, target, reduction="sum").item() == 0


def test_cosine_contrastive_twice_differentiable():
    x1, x2, target = given(6)
    for reduction in ("mean", "none"):
        oracle.assert_differentiable_twice(cosine_loss(target, reduction), x1, x2, torch.tensor(0.1))


def test_cosine_contrastive_keeps_to_what_all_losses_do():
    x1, x2, target = given(9)
    inputs = x1, x2, torch.tensor(0.25)
    oracle.assert_layout_does_not_matter(cosine_loss(target), *inputs)
    oracle.assert_autocast_changes_nothing(cosine_loss(target), *inputs)
    oracle.assert_half_precision_is_lifted(cosine_loss(target), *inputs)


def test_cosine_contrastive_compiles():
    x1, x2, target = given(9)
    oracle.assert_compiles(cosine_loss(target), x1, x2, torch.tensor(0.1))


def test_cosine_contrastive_module_calls_the_function():
    x1, x2, target = given(9)
    module = CosineContrastiveLoss(0.2, reduction="none")
    assert not module.state_dict()
    expected = cosine_loss(target, "none")(x1, x2, 0.2)
    torch.testing.assert_close(module(x1, x2, target), expected, rtol=0, atol=0)


X, TARGET = torch.ones(3, 4), torch.tensor([1, -1, 1])


@pytest.mark.parametrize(
    ("x1", "x2", "target", "options", "says"),
    [
        (torch.zeros(3), X, TARGET, {}, "x1 must have shape"),
        (X, X[:2], TARGET, {}, "x2 must have the shape of x1"),
        (X, X.half(), TARGET, {}, "x2 must have the dtype of x1"),
        (X, X.to("meta"), TARGET, {}, "x2 is on meta"),
        (X, X, [1, -1, 1], {}, "target must be a tensor, got list"),
        (X, X, TARGET > 0, {}, "target must hold 1 and -1, got torch.bool"),
        (X, X, TARGET[:2], {}, r"target must have shape \(3,\), got \(2,\)"),
        (X, X, TARGET.to("meta"), {}, "target is on meta"),
        (X, X, torch.tensor([0, 1, 1]), {}, "target must hold 1 and -1 only"),
        (X, X, TARGET, {"margin": math.inf}, "margin must be finite"),
        (X, X, TARGET, {"reduction": "max"}, "reduction must be one of"),
        (X[:0], X[:0], TARGET[:0], {}, "x1 has no rows"),
    ],
)
def test_cosine_contrastive_bad_input(x1, x2, target, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.cosine_contrastive(x1, x2, target, **options)


def test_cosine_contrastive_module_bad_margin():
    with pytest.raises(ThawkitError, match="margin must be a number"):
        CosineContrastiveLoss("x")
