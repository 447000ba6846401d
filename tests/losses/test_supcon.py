"""The supervised contrastive loss against equations 2 and 3 of its paper, written as loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import SupConLoss
from thawkit.losses import functional as F


def batch(rows, features=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, features, generator=generator)
    return embeddings, torch.randint(0, classes, (rows,), generator=generator)


def shared_labels(a, b):
    return int((a * b).sum()) if a.dim() else int(a == b)


def definition(z, temperature, labels, variant="out", normalized=True, reduction="mean"):
    weight = torch.tensor([[shared_labels(a, b) for b in labels] for a in labels])
    return definition_of_pairs(z, z, temperature, weight, 0, variant, normalized, reduction)


def definition_of_pairs(
    z, others, temperature, weight, own, variant="out", normalized=True, reduction="mean"
):
    """The pairs of rows i and j of two matrices weigh ``weight[i, j]``, but for j = i + own, which is i."""
    if normalized:
        z, others = (torch.stack([row / row.norm() for row in x]) for x in (z, others))
    rows, anchors = [], 0
    for i in range(len(z)):
        there = [j for j in range(len(others)) if own is None or j != i + own]
        weights = {j: weight[i, j] for j in there if weight[i, j]}
        if not weights:
            rows.append(0 * (z.sum() + others.sum() + temperature))
            continue
        anchors += 1
        normalizer = sum((z[i].dot(others[j]) / temperature).exp() for j in there)
        p = {j: (z[i].dot(others[j]) / temperature).exp() / normalizer for j in weights}
        total = sum(weights.values())
        if variant == "out":
            rows.append(-sum(w * p[j].log() for j, w in weights.items()) / total)
        else:
            rows.append(-(sum(w * p[j] for j, w in weights.items()) / total).log())
    rows = torch.stack(rows)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / max(anchors, 1)}[reduction]


def loss(labels, variant="out", normalized=True, reduction="mean"):
    return lambda z, temperature: F.supcon(
        z, labels, temperature=temperature, variant=variant, normalize=normalized, reduction=reduction
    )


def assert_is_its_definition(z, labels, temperature, *options):
    oracle.assert_is(
        loss(labels, *options), lambda z, t: definition(z, t, labels, *options), z, torch.tensor(temperature)
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("rows", [1, 2, 9, 23])
def test_supcon_is_its_definition(rows, variant, normalized, reduction):
    z, labels = batch(rows)
    assert_is_its_definition(z, labels, 0.15 if normalized else 3.0, variant, normalized, reduction)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_supcon_with_several_labels(dtype, variant, reduction):
    z, _ = batch(14)
    labels = (torch.rand(14, 5, generator=torch.Generator().manual_seed(1)) < 0.3).to(dtype)
    labels[3] = 0  # shares nothing with anybody
    assert_is_its_definition(z, labels.long(), 0.2, variant, True, reduction)
    torch.testing.assert_close(
        F.supcon(z, labels, variant=variant), F.supcon(z, labels.long(), variant=variant)
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("variant", ["out", "in"])
def test_supcon_one_hot_labels_are_classes(variant, reduction):
    z, labels = batch(11)
    torch.testing.assert_close(
        loss(nn.functional.one_hot(labels), variant, True, reduction)(z, 0.1),
        loss(labels, variant, True, reduction)(z, 0.1),
    )


@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("kind", ["all one class", "a class with one row", "one pair", "extreme labels"])
def test_supcon_unusual_labels(kind, variant):
    z, labels = batch(8)
    labels = {
        "all one class": torch.zeros(8, dtype=torch.int32),
        "a class with one row": torch.tensor([0, 1, 1, 1, 2, 2, 3, 2]),
        "one pair": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),
        "extreme labels": torch.where(labels == 0, -(2**63), torch.where(labels == 1, 2**63 - 1, -1)),
    }[kind]
    for reduction in ("none", "mean"):
        assert_is_its_definition(z, labels, 0.2, variant, True, reduction)


REDUCTIONS = ["none", "mean", "sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (3, 1), (1, 7), (9, 20)])
def test_supcon_of_other_rows(rows, others, several, variant, reduction):
    z, labels = batch(rows)
    ref, ref_labels = batch(others, seed=1)
    weight = (labels[:, None] == ref_labels).double()
    if several:
        labels, ref_labels = ((torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) < 0.4).long()
                              for n in (rows, others))  # fmt: skip
        weight = (labels @ ref_labels.t()).double()
    options = {"variant": variant, "reduction": reduction}
    oracle.assert_is(
        lambda z, ref, t: F.supcon(z, labels, temperature=t, ref=ref, ref_labels=ref_labels, **options),
        lambda z, ref, t: definition_of_pairs(z, ref, t, weight, None, **options),
        z,
        ref,
        torch.tensor(0.2),
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("own", [0, 4, 11])
def test_supcon_of_rows_that_hold_the_embeddings(own, variant, several):
    ref, ref_labels = batch(20, seed=1)
    if several:
        ref_labels = nn.functional.one_hot(ref_labels)
        ref_labels[:, 0] = 1
    rows = slice(own, own + 9)
    rest = torch.cat((ref[:own], ref[own + 9 :]))

    def of_ref(z, rest, t):
        ref = torch.cat((rest[:own], z, rest[own:]))
        return F.supcon(
            z, ref_labels[rows], temperature=t, variant=variant, reduction="none",
            ref=ref, ref_labels=ref_labels, own=own,
        )  # fmt: skip

    def of_all(z, rest, t):
        ref = torch.cat((rest[:own], z, rest[own:]))
        return F.supcon(ref, ref_labels, temperature=t, variant=variant, reduction="none")[rows]

    oracle.assert_is(of_ref, of_all, ref[rows], rest, torch.tensor(0.2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize(("samples", "views"), [(9, 1), (4, 3), (1, 2)])
def test_supcon_with_weights_of_pairs(samples, views, dtype, variant, reduction):
    z, _ = batch(samples * views)
    weight = torch.rand(samples, samples, generator=torch.Generator().manual_seed(1))
    weight = torch.where(weight < 0.5, 0, weight).to(dtype)
    weight[0, 1:] = 0
    options = {"variant": variant, "reduction": reduction}
    tiled = weight.double().repeat(views, views)
    inputs = z, torch.tensor(0.2)
    oracle.assert_is(
        lambda z, t: F.supcon(z, None, temperature=t, pair_weight=weight, **options),
        lambda z, t: definition_of_pairs(z, z, t, tiled, 0, **options),
        *inputs,
    )
    oracle.assert_is(
        lambda z, t: F.supcon(z[:samples], None, temperature=t, pair_weight=weight, ref=z, **options),
        lambda z, t: definition_of_pairs(z[:samples], z, t, tiled, None, **options),
        *inputs,
    )


@pytest.mark.parametrize(
    ("b", "c", "own"), [(4, 4, 0), (4, 2, 0), (2, 4, 4), (4, 4, 3), (1, 4, 5), (4, 12, 8)]
)
def test_supcon_with_weights_of_pairs_of_views_of_either(b, c, own):
    """The weight of a row with itself is large beside all others: none of it is left over."""
    ref, _ = batch(12)
    z = ref[own : own + 4]
    weight = 1e-9 * torch.rand(b, c, generator=torch.Generator().manual_seed(1))
    tiled = weight.double().repeat(4 // b, 12 // c)
    if c == 12:
        for i in range(4):
            weight[i, own + i] = tiled[i, own + i] = 1
    oracle.assert_is(
        lambda z, ref, t: F.supcon(z, None, temperature=t, pair_weight=weight, ref=ref, own=own),
        lambda z, ref, t: definition_of_pairs(z, ref, t, tiled, own),
        z,
        ref,
        torch.tensor(0.2),
    )


def test_supcon_of_no_other_rows():
    z, labels = batch(3)
    for variant in ("out", "in"):
        value = F.supcon(z.requires_grad_(), labels, variant=variant, ref=z[:0], ref_labels=labels[:0])
        assert value.item() == 0
        assert not torch.autograd.grad(value, z)[0].any()


@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_supcon_without_any_positive_is_nothing(reduction, variant):
    z, temperature = batch(5)[0].requires_grad_(), torch.tensor(0.1, requires_grad=True)
    value = loss(torch.arange(5), variant, True, reduction)(z, temperature)
    value.sum().backward()
    assert not value.any()
    assert not z.grad.any()
    assert temperature.grad == 0


@pytest.mark.parametrize("variant", ["out", "in"])
def test_supcon_saturated(variant):
    z, labels = batch(16)
    z[:6] = z[0]  # of several classes
    z[8] = -z[9]
    oracle.assert_is(
        loss(labels, variant, True, "none"),
        lambda z, t: definition(z, t, labels, variant, True, "none"),
        z,
        torch.tensor(0.01),
    )


def eager(z, labels, temperature):
    """Equation 2 in plain torch, in the dtype of z."""
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    log_p = (z @ z.t() / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    return -log_p.where(positive, 0).sum(1) / positive.sum(1)


@pytest.mark.parametrize("labelled_by", ["classes", "label matrix", "pair_weight"])
@pytest.mark.parametrize("views", [2, 3, 8])
def test_supcon_keeps_its_digits_where_it_is_nearly_zero(views, labelled_by):
    generator = torch.Generator().manual_seed(0)
    z = nn.functional.normalize(torch.randn(32, 64, generator=generator), dim=1).repeat(views, 1)
    z = nn.functional.normalize(z + 0.02 * torch.randn(z.shape, generator=generator), dim=1)
    labels = torch.arange(32).repeat(views)
    given, options = labels, {}
    if labelled_by == "label matrix":
        given = nn.functional.one_hot(labels)
    elif labelled_by == "pair_weight":
        given, options = None, {"pair_weight": torch.eye(32)}

    def ours(z):
        return F.supcon(z, given, temperature=0.05, normalize=False, reduction="none", **options)

    def errors(function):
        for a, b in zip(oracle.values_and_gradients(function, z), truth, strict=True):
            yield ((a.double() - b).reshape(len(z), -1).norm(dim=1) / b.reshape(len(z), -1).norm(dim=1)).max()

    # With several positives the loss is at least the logarithm of their number. Logits are up to 20: of their
    # rounding, which torch has in both terms alike, that of one remains.
    rounding = 20 * torch.finfo(torch.float32).eps if views > 2 else 0
    truth = oracle.values_and_gradients(lambda z: eager(z, labels, 0.05), z.double())
    for mine, torchs in zip(errors(ours), errors(lambda z: eager(z, labels, 0.05)), strict=True):
        assert mine < max(4 * torchs, 4 * rounding)
    total, *gradient = oracle.values_and_gradients(lambda z: ours(z).mean(), z)
    reduced = lambda z: F.supcon(z, given, temperature=0.05, normalize=False, **options)
    torch.testing.assert_close(oracle.values_and_gradients(reduced, z), [total, *gradient])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["out", "in"])
def test_supcon_gradients_are_rounded_to_half_precision_once(variant, dtype):
    z, labels = batch(40)
    z = z.to(dtype)
    (half,) = oracle.values_and_gradients(lambda z: loss(labels, variant, False)(z, 3.0), z)[1:]
    (single,) = oracle.values_and_gradients(lambda z: loss(labels, variant, False)(z, 3.0), z.float())[1:]
    assert torch.equal(half, single.to(dtype))


def test_supcon_variants_order_as_in_the_paper():
    z, labels = batch(20)
    inside, outside = (F.supcon(z, labels, variant=v, reduction="none") for v in ("in", "out"))
    assert (inside <= outside + 1e-6).all()  # Jensen's inequality, sec. 3.2.2


def test_supcon_of_two_views_of_each_class_is_nt_xent():
    z1, z2 = batch(9)[0], batch(9, seed=1)[0]
    labels = torch.arange(9).repeat(2)
    for variant in ("in", "out"):
        torch.testing.assert_close(
            F.supcon(torch.cat((z1, z2)), labels, temperature=0.5, variant=variant), F.nt_xent(z1, z2)
        )


def test_supcon_no_rows():
    z = torch.zeros(0, 4, requires_grad=True)
    for variant in ("out", "in"):
        for labels in (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)):
            assert F.supcon(z, labels, variant=variant, reduction="none").shape == (0,)
            value = F.supcon(z, labels, variant=variant, reduction="sum")
            assert value.item() == 0
            assert torch.autograd.grad(value, z)[0].shape == (0, 4)


@pytest.mark.parametrize("variant", ["out", "in"])
def test_supcon_twice_differentiable(variant):
    z, labels = torch.randn(6, 3), torch.tensor([0, 1, 0, 2, 1, 0])
    oracle.assert_differentiable_twice(loss(labels, variant), z, torch.tensor(0.5))
    oracle.assert_differentiable_twice(loss(labels, variant, False, "none"), z, torch.tensor(2.0))


@pytest.mark.parametrize("variant", ["out", "in"])
def test_supcon_keeps_to_what_all_losses_do(variant):
    z, labels = batch(9)
    inputs = z, torch.tensor(0.25)
    oracle.assert_layout_does_not_matter(loss(labels, variant), *inputs)
    oracle.assert_autocast_changes_nothing(loss(labels, variant), *inputs)
    oracle.assert_half_precision_is_lifted(loss(labels, variant), *inputs)


def test_supcon_autocast_does_not_round_shared_labels():
    z, labels = batch(9)[0], torch.ones(9, 300)
    labels[:, 257:] = torch.rand(9, 43) < 0.5
    oracle.assert_autocast_changes_nothing(loss(labels), z, torch.tensor(0.1))


@pytest.mark.parametrize(
    ("variant", "backend"), [("out", "aot_eager"), ("in", "aot_eager"), ("out", "inductor")]
)
def test_supcon_compiles(variant, backend):
    z, labels = batch(9)
    oracle.assert_compiles(loss(labels, variant), z, torch.tensor(0.2), backend=backend)


def test_supcon_module_calls_the_function():
    z, labels = batch(9)
    module = SupConLoss(2.0, variant="in", normalize=False, reduction="none")
    assert not module.state_dict()
    torch.testing.assert_close(module(z, labels), loss(labels, "in", False, "none")(z, 2.0), rtol=0, atol=0)


def test_supcon_module_learns_its_temperature():
    module = SupConLoss(nn.Parameter(torch.tensor(0.3)))
    assert list(module.state_dict()) == ["temperature"]
    module(*batch(9)).backward()
    assert module.temperature.grad is not None


Z, LABELS = torch.zeros(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("z", "labels", "options", "says"),
    [
        (torch.zeros(3), LABELS, {}, "embeddings must have shape"),
        (Z.long(), LABELS, {}, "embeddings must be float32"),
        (Z, [0, 1, 0], {}, "labels must be a tensor, got list"),
        (Z, LABELS.float(), {}, "labels must hold integers, got torch.float32"),
        (Z, LABELS[:2], {}, r"labels must have shape \(3,\), one label a row of embeddings, got \(2,\)"),
        (Z, torch.zeros(2, 5), {}, r"labels must have shape \(3,\) or \(3, L\), got \(2, 5\)"),
        (Z, LABELS.to("meta"), {}, "labels is on meta but embeddings is on cpu"),
        (Z, torch.full((3, 2), 2), {}, "labels of shape .* must hold zeros and ones only"),
        (Z, LABELS, {"temperature": 0}, "temperature must be positive and finite"),
        (Z, LABELS, {"temperature": torch.tensor(math.nan)}, "temperature must be positive and finite"),
        (Z, LABELS, {"variant": "both"}, "variant must be one of"),
        (Z, LABELS, {"reduction": "max"}, "reduction must be one of"),
        (Z[:0], LABELS[:0], {}, "embeddings has no rows"),
        (Z, None, {}, "either labels or pair_weight must be given, got neither"),
        (Z, LABELS, {"pair_weight": torch.eye(3)}, "either labels or pair_weight must be given, got both"),
        (Z, LABELS, {"ref": Z}, "ref_labels must come with ref, got None"),
        (Z, LABELS, {"ref_labels": LABELS}, "ref must come with ref_labels, got None"),
        (Z, LABELS, {"ref": Z.double(), "ref_labels": LABELS}, "ref must have the dtype of embeddings"),
        (Z, LABELS, {"ref": Z, "ref_labels": torch.zeros(3, 2)}, "as many columns as labels"),
        (Z, LABELS, {"ref": Z, "ref_labels": LABELS[:2]}, r"ref_labels must have shape \(3,\)"),
        (Z, LABELS, {"own": 0}, "own says where the embeddings are in ref, which is None"),
        (Z, LABELS, {"ref": Z, "ref_labels": LABELS, "own": 1}, "own must be the first of 3 rows of ref"),
        (Z, None, {"ref_labels": LABELS, "pair_weight": torch.eye(3)}, "ref_labels must come with labels"),
        (Z, None, {"pair_weight": torch.eye(2)}, "whose numbers of rows and columns divide 3 and 3"),
        (Z, None, {"pair_weight": [[1.0]]}, "pair_weight must be a tensor, got list"),
        (Z, None, {"pair_weight": -torch.eye(3)}, "pair_weight must hold finite numbers of at least 0"),
        (Z, None, {"pair_weight": torch.full((3, 3), math.inf)}, "pair_weight must hold finite numbers"),
    ],
)
def test_supcon_bad_input(z, labels, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.supcon(z, labels, **options)


def test_supcon_module_bad_arguments():
    with pytest.raises(ThawkitError, match="variant must be one of"):
        SupConLoss(variant="both")
    with pytest.raises(ThawkitError, match="temperature must be positive"):
        SupConLoss(-1.0)
