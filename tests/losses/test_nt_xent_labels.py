"""NT-Xent with labels against loops over its pairs in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F


def batch(rows, classes=3, features=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return torch.randn(rows, features, generator=generator), labels


def definition(z, others, temperature, labels, ref_labels, own, normalized, reduction):
    if normalized:
        z, others = (torch.stack([row / row.norm() for row in x]) for x in (z, others))
    rows, losses = [], []
    for i in range(len(z)):
        s = {j: z[i].dot(others[j]) / temperature for j in range(len(others)) if own is None or j != i + own}
        positives = [j for j in s if ref_labels[j] == labels[i]]
        negatives = [s[j] for j in s if ref_labels[j] != labels[i]]
        mine = [torch.stack([s[p], *negatives]).logsumexp(0) - s[p] for p in positives]
        rows.append(sum(mine, 0 * (z.sum() + others.sum() + temperature)))
        losses += mine
    rows = torch.stack(rows)
    counts = {"mean": len(losses), "mean_nonzero": sum(bool(x > 0) for x in losses), "sum": 1}
    return rows if reduction == "none" else rows.sum() / max(counts[reduction], 1)


def assert_is_its_definition(
    z, labels, temperature, normalized=True, reduction="mean", ref=None, ref_labels=None, own=None, **options
):
    def of_ref(z, *rest):
        *others, t = rest
        return F.nt_xent_labels(
            z, labels, temperature=t, normalize=normalized, reduction=reduction,
            ref=others[0] if others else None, ref_labels=ref_labels, own=own,
        )  # fmt: skip

    def truth(z, *rest):
        *others, t = rest
        if others:
            return definition(z, others[0], t, labels, ref_labels, own, normalized, reduction)
        return definition(z, z, t, labels, labels, 0, normalized, reduction)

    inputs = (z,) if ref is None else (z, ref)
    oracle.assert_is(of_ref, truth, *inputs, torch.tensor(temperature), **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_nonzero", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 9, 23])
def test_nt_xent_labels_is_its_definition(rows, normalized, reduction):
    assert_is_its_definition(*batch(rows), 0.15 if normalized else 3.0, normalized, reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (3, 1), (1, 7), (9, 20)])
def test_nt_xent_labels_of_other_rows(rows, others, normalized, reduction):
    ref, ref_labels = batch(others, seed=1)
    assert_is_its_definition(*batch(rows), 0.2, normalized, reduction, ref, ref_labels)


@pytest.mark.parametrize("own", [0, 4, 11])
def test_nt_xent_labels_of_rows_that_hold_the_anchors(own):
    ref, ref_labels = batch(20, seed=1)
    rows = slice(own, own + 9)
    assert_is_its_definition(ref[rows], ref_labels[rows], 0.2, True, "none", ref, ref_labels, own)


@pytest.mark.parametrize(
    "labels",
    [
        [0] * 8,
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 1, 1, 2, 2, 3, 2],
        [2**63 - 1, -(2**63), -1, -1, 2**63 - 1, 0, 0, -(2**63)],
    ],
)
def test_nt_xent_labels_unusual_labels(labels):
    for reduction in ("none", "mean"):
        assert_is_its_definition(batch(8)[0], torch.tensor(labels), 0.2, True, reduction)


@pytest.mark.parametrize("classes", [2, 5, 60, 150])
def test_nt_xent_labels_of_several_panels(classes):
    z, labels = batch(300, classes, features=24)
    ref, ref_labels = batch(170, classes, features=24, seed=1)
    for others in ((), (ref, ref_labels)):

        def loss(z, t, *ref, reduction="none", others=others):
            ref_labels = others[1] if ref else None
            return F.nt_xent_labels(
                z,
                labels,
                temperature=t,
                reduction=reduction,
                ref=ref[0] if ref else None,
                ref_labels=ref_labels,
            )

        oracle.assert_is(loss, loss, z, torch.tensor(0.1), *others[:1])


def test_nt_xent_labels_saturated():
    z, labels = batch(16)
    z[:6] = z[0]  # of several classes
    z[8] = -z[9]
    assert_is_its_definition(z, labels, 0.01, True, "none")


def test_nt_xent_labels_of_pairs_of_views_is_nt_xent():
    z1, z2 = batch(9)[0], batch(9, seed=1)[0]
    labels = torch.arange(9).repeat(2)
    torch.testing.assert_close(
        F.nt_xent_labels(torch.cat((z1, z2)), labels, temperature=0.5), F.nt_xent(z1, z2)
    )


def test_nt_xent_labels_no_rows():
    z, ref = torch.zeros(0, 4, requires_grad=True), torch.randn(3, 4)
    labels = torch.zeros(0, dtype=torch.int64)
    assert F.nt_xent_labels(z, labels, reduction="none").shape == (0,)
    assert F.nt_xent_labels(z, labels, reduction="sum").item() == 0
    value = F.nt_xent_labels(ref.requires_grad_(), torch.arange(3), ref=z, ref_labels=labels)
    assert value.item() == 0
    assert not torch.autograd.grad(value, ref)[0].any()


def test_nt_xent_labels_twice_differentiable():
    z, labels = torch.randn(6, 3), torch.tensor([0, 1, 0, 2, 1, 0])
    for reduction in ("mean", "none"):
        oracle.assert_differentiable_twice(
            lambda z, t, reduction=reduction: F.nt_xent_labels(z, labels, temperature=t, reduction=reduction),
            z,
            torch.tensor(0.5),
        )


def test_nt_xent_labels_keeps_to_what_all_losses_do():
    z, labels = batch(9)

    def loss(z, t):
        return F.nt_xent_labels(z, labels, temperature=t)

    inputs = z, torch.tensor(0.25)
    oracle.assert_layout_does_not_matter(loss, *inputs)
    oracle.assert_autocast_changes_nothing(loss, *inputs)
    oracle.assert_half_precision_is_lifted(loss, *inputs)


def test_nt_xent_labels_compiles_with_breaks():
    z, labels = batch(9)
    loss = torch.compile(F.nt_xent_labels, backend="aot_eager")
    torch.testing.assert_close(loss(z, labels), F.nt_xent_labels(z, labels))


@pytest.mark.parametrize("frozen", ["embeddings", "ref"])
def test_nt_xent_labels_multiplies_nothing_for_what_is_frozen(frozen):
    (z, labels), (ref, ref_labels) = batch(300), batch(500, seed=1)

    def gradients_and_products(*trained):
        leaves = {n: x.clone().requires_grad_(n in trained) for n, x in (("embeddings", z), ("ref", ref))}
        loss = F.nt_xent_labels(labels=labels, ref_labels=ref_labels, temperature=0.2, **leaves)
        with torch.profiler.profile() as profile:
            loss.backward()
        return leaves, sum(event.name == "aten::mm" for event in profile.events())

    both, all_products = gradients_and_products("embeddings", "ref")
    trained = "ref" if frozen == "embeddings" else "embeddings"
    one, products = gradients_and_products(trained)
    assert one[frozen].grad is None
    torch.testing.assert_close(one[trained].grad, both[trained].grad)
    panels = -(-300 // 128)
    assert all_products - products == panels


def test_nt_xent_labels_stores_no_matrix():
    z, labels = batch(4096, classes=64)
    z.requires_grad_()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        F.nt_xent_labels(z, labels).backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < 4096 * 4096 * 4 / 8


Z, LABELS = torch.zeros(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("z", "labels", "options", "says"),
    [
        (torch.zeros(3), LABELS, {}, "embeddings must have shape"),
        (Z, LABELS.float(), {}, "labels must hold integers, got torch.float32"),
        (Z, LABELS[:2], {}, r"labels must have shape \(3,\)"),
        (Z, LABELS, {"ref": Z}, "ref_labels must come with ref, got None"),
        (Z, LABELS, {"ref_labels": LABELS}, "ref must come with ref_labels, got None"),
        (Z, LABELS, {"ref": Z[:, :2], "ref_labels": LABELS}, "ref and embeddings must have the same number"),
        (Z, LABELS, {"ref": Z.double(), "ref_labels": LABELS}, "ref must have the dtype of embeddings"),
        (Z, LABELS, {"own": 0}, "own says where the embeddings are in ref, which is None"),
        (Z, LABELS, {"ref": Z, "ref_labels": LABELS, "own": 1}, "own must be the first of 3 rows of ref"),
        (Z, LABELS, {"temperature": 0}, "temperature must be positive and finite"),
        (Z, LABELS, {"temperature": torch.tensor(math.nan)}, "temperature must be positive and finite"),
        (Z, LABELS, {"reduction": "max"}, "reduction must be one of"),
        (Z[:0], LABELS[:0], {}, "embeddings has no rows"),
    ],
)
def test_nt_xent_labels_bad_input(z, labels, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.nt_xent_labels(z, labels, **options)
