"""The triplet loss against loops over explicit triplets in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import TripletMarginLoss
from thawkit.losses import functional as F

MININGS = ["all", "hard", "semihard"]


def batch(rows, features=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=generator) / math.sqrt(features)
    return z, torch.randint(0, classes, (rows,), generator=generator)


def distance_of(a, b, kind):
    if kind == "cosine":
        return 1 - a.dot(b) / (a.norm() * b.norm())
    return (a - b).norm()  # its gradient at distance 0 is 0


def triplets_of(distances, positives, negatives, mining):
    """The (positive, negative) pairs of one anchor."""
    if not positives or not negatives:
        return []
    if mining == "all":
        return [(p, n) for p in positives for n in negatives]
    if mining == "hard":
        return [(max(positives, key=distances.get), min(negatives, key=distances.get))]
    chosen = []
    for p in positives:
        farther = [n for n in negatives if distances[n] > distances[p]]
        n = min(farther, key=distances.get) if farther else max(negatives, key=distances.get)
        chosen.append((p, n))
    return chosen


def definition(z, margin, labels, mining, distance, reduction, ref=None, ref_labels=None):
    others, other_labels = (z, labels) if ref is None else (ref, ref_labels)
    rows, losses = [], []
    for i in range(len(z)):
        d = {
            j: distance_of(z[i], others[j], distance) for j in range(len(others)) if ref is not None or j != i
        }
        positives = [j for j in d if other_labels[j] == labels[i]]
        negatives = [j for j in d if other_labels[j] != labels[i]]
        mine = [(d[p] - d[n] + margin).clamp_min(0) for p, n in triplets_of(d, positives, negatives, mining)]
        rows.append(sum(mine, 0 * z.sum()))
        losses += mine
    rows = torch.stack(rows)
    count = sum(bool(x > 0) for x in losses) if reduction == "mean_nonzero" else len(losses)
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / max(count, 1)


def loss(labels, mining="all", distance="euclidean", reduction="mean", **ref):
    return lambda z, margin: F.triplet_margin(
        z, labels, margin=margin, mining=mining, distance=distance, reduction=reduction, **ref
    )


def assert_is_its_definition(z, labels, *options, margin=0.2, **tolerance):
    oracle.assert_is(
        loss(labels, *options),
        lambda z, m: definition(z, m, labels, *options),
        z,
        torch.tensor(margin),
        **tolerance,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_nonzero", "sum"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_triplet_is_its_definition(rows, mining, distance, reduction):
    assert_is_its_definition(*batch(rows), mining, distance, reduction)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.05, 10.0])
@pytest.mark.parametrize("mining", MININGS)
def test_triplet_with_other_margins(mining, margin):
    for reduction in ("none", "mean_nonzero"):
        assert_is_its_definition(*batch(15), mining, "euclidean", reduction, margin=margin)


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_nonzero", "sum"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (5, 13), (13, 5)])
def test_triplet_with_references(rows, others, mining, distance, reduction):
    z, labels = batch(rows)
    ref, ref_labels = batch(others, seed=1)
    oracle.assert_is(
        lambda z, ref, m: loss(labels, mining, distance, reduction, ref=ref, ref_labels=ref_labels)(z, m),
        lambda z, ref, m: definition(z, m, labels, mining, distance, reduction, ref, ref_labels),
        z,
        ref,
        torch.tensor(0.2),
    )


def test_references_may_be_positives_of_themselves():
    z, labels = batch(6)
    with_itself = loss(labels, reduction="sum", ref=z, ref_labels=labels)(z, 2.0)
    expected = definition(z, 2.0, labels, "all", "euclidean", "sum", z, labels)
    torch.testing.assert_close(with_itself, expected)
    assert with_itself > loss(labels, reduction="sum")(z, 2.0)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", ["all one class", "all classes apart", "one pair", "a class with one row"])
def test_triplet_unusual_labels(kind, mining):
    labels = {
        "all one class": torch.zeros(6, dtype=torch.int32),
        "all classes apart": torch.arange(6),
        "one pair": torch.tensor([0, 1, 2, -1, 4, 0]),
        "a class with one row": torch.tensor([0, 0, 0, 0, 0, 2**62]),
    }[kind]
    for reduction in ("none", "mean", "mean_nonzero"):
        assert_is_its_definition(batch(6)[0], labels, mining, "euclidean", reduction)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("far", [0.0, 100.0])
def test_triplet_of_equal_rows_has_finite_gradients(far, mining):
    z, labels = torch.zeros(10, 6) + far, torch.tensor([0, 0, 1, 1, 2] * 2)
    got = oracle.values_and_gradients(loss(labels, mining, reduction="none"), z, torch.tensor(0.25))
    pairs = torch.tensor([3, 3, 3, 3, 1] * 2)  # positives of each anchor
    negatives = torch.tensor([6, 6, 6, 6, 8] * 2)
    count = {"all": pairs * negatives, "hard": pairs.clamp_max(1), "semihard": pairs}[mining]
    torch.testing.assert_close(got[0], 0.25 * count)
    assert not got[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mining", MININGS)
def test_triplet_of_rows_that_occur_twice(mining, dtype):
    """Which of two equally far rows is mined is open, but not the loss, nor what the copies get together."""
    z, labels = batch(12)
    z = torch.cat((z, z[:6])).to(dtype)
    # a copy in another class is as far as a positive, and rounding says whether it is farther
    copies = labels[:6] if mining == "semihard" else labels[:3].repeat(2)
    labels = torch.cat((labels, copies))
    value, dz = oracle.values_and_gradients(lambda z: loss(labels, mining, reduction="sum")(z, 0.2), z)
    truth, true_dz = oracle.values_and_gradients(
        lambda z: definition(z, 0.2, labels, mining, "euclidean", "sum"), z.double()
    )
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(dz).all()
    fold = lambda g: torch.cat((g[:6] + g[12:], g[6:12])).double()
    torch.testing.assert_close(fold(dz), fold(true_dz), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mining", MININGS)
def test_triplet_far_from_the_origin(mining):
    z, labels = batch(14)
    assert_is_its_definition(z + 100, labels, mining, "euclidean", "none", rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mining", MININGS)
def test_triplet_does_not_hide_what_is_not_finite(mining, value):
    z, labels = batch(9)
    z[3, 2] = value
    assert loss(labels, mining)(z, 0.2).isnan()


@pytest.mark.parametrize("mining", MININGS)
def test_triplet_no_rows(mining):
    z, labels = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert loss(labels, mining, reduction="none")(z, 0.2).shape == (0,)
    value = loss(labels, mining, reduction="sum")(z, 0.2)
    assert value.item() == 0
    assert torch.autograd.grad(value, z)[0].shape == (0, 4)
    full, full_labels = batch(5, 4)
    full.requires_grad_()
    value = loss(full_labels, mining, ref=z, ref_labels=labels)(full, 0.2)
    assert value.item() == 0
    assert not torch.autograd.grad(value, full)[0].any()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", MININGS)
def test_triplet_twice_differentiable(mining, distance):
    z, labels = batch(6, 3)
    for reduction in ("mean", "none"):
        oracle.assert_differentiable_twice(loss(labels, mining, distance, reduction), z, torch.tensor(0.3))


@pytest.mark.parametrize("mining", MININGS)
def test_triplet_keeps_to_what_all_losses_do(mining):
    z, labels = batch(9)
    inputs = z, torch.tensor(0.25)
    oracle.assert_layout_does_not_matter(loss(labels, mining), *inputs)
    oracle.assert_autocast_changes_nothing(loss(labels, mining), *inputs)
    oracle.assert_half_precision_is_lifted(loss(labels, mining), *inputs)


@pytest.mark.parametrize(("mining", "backend"), [(m, "aot_eager") for m in MININGS] + [("all", "inductor")])
def test_triplet_compiles(mining, backend):
    z, labels = batch(9)
    oracle.assert_compiles(
        loss(labels, mining, reduction="mean_nonzero"), z, torch.tensor(0.2), backend=backend
    )


def test_batch_all_needs_no_matrix_of_triplets():
    z, labels = batch(400, classes=4)
    z.requires_grad_()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        loss(labels)(z, 0.2).backward()
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= 400 * 400 * 8 * 4


def test_triplet_module_calls_the_function():
    z, labels = batch(9)
    module = TripletMarginLoss(0.7, mining="semihard", distance="cosine", reduction="mean_nonzero")
    assert not module.state_dict()
    expected = loss(labels, "semihard", "cosine", "mean_nonzero")(z, 0.7)
    torch.testing.assert_close(module(z, labels), expected, rtol=0, atol=0)
    expected = loss(labels, "semihard", "cosine", "mean_nonzero", ref=z[:5], ref_labels=labels[:5])(z, 0.7)
    torch.testing.assert_close(module(z, labels, z[:5], labels[:5]), expected, rtol=0, atol=0)


def test_triplet_module_keeps_a_margin_that_is_a_parameter():
    module = TripletMarginLoss(nn.Parameter(torch.tensor(0.2)))
    assert list(module.state_dict()) == ["margin"]
    module(*batch(9)).backward()
    assert module.margin.grad > 0


Z, LABELS = torch.zeros(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("z", "labels", "options", "says"),
    [
        (torch.zeros(3), LABELS, {}, "embeddings must have shape"),
        (Z, LABELS.float(), {}, "labels must hold integers"),
        (Z, LABELS[:, None], {}, r"labels must have shape \(3,\)"),
        (Z, LABELS, {"margin": math.inf}, "margin must be finite"),
        (Z, LABELS, {"margin": "a"}, "margin must be a number"),
        (Z, LABELS, {"mining": "easy"}, "mining must be one of"),
        (Z, LABELS, {"distance": "l1"}, "distance must be one of"),
        (Z, LABELS, {"ref": Z}, "ref_labels must come with ref"),
        (Z, LABELS, {"ref_labels": LABELS}, "ref must come with ref_labels"),
        (Z, LABELS, {"ref": Z[0], "ref_labels": LABELS}, "ref must have shape"),
        (
            Z,
            LABELS,
            {"ref": Z[:, :2], "ref_labels": LABELS},
            "ref and embeddings must have the same number of",
        ),
        (Z, LABELS, {"ref": Z.double(), "ref_labels": LABELS}, "ref must have the dtype of embeddings"),
        (Z, LABELS, {"ref": Z.to("meta"), "ref_labels": LABELS}, "ref is on meta"),
        (Z, LABELS, {"ref": Z, "ref_labels": LABELS[:2]}, r"ref_labels must have shape \(3,\)"),
        (Z, LABELS, {"reduction": "max"}, "reduction must be one of 'none', 'mean', 'mean_nonzero', 'sum'"),
        (Z[:0], LABELS[:0], {}, "embeddings has no rows, and reduction='mean'"),
        (Z[:0], LABELS[:0], {"reduction": "mean_nonzero"}, "embeddings has no rows"),
    ],
)
def test_triplet_bad_input(z, labels, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.triplet_margin(z, labels, **options)


@pytest.mark.parametrize("argument", ["margin", "mining", "distance"])
def test_triplet_module_bad_arguments(argument):
    with pytest.raises(ThawkitError, match=f"{argument} must be"):
        TripletMarginLoss(**{argument: "x"})
