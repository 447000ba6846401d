"""The losses with margins on Triton kernels, interpreted (or on a GPU, where there is one), against float64.

Rows hold -1 and 1 as many times as not, so that their distances are exact and ties are ties in float64 too.
"""

from __future__ import annotations

import math

import pytest
import torch
from tests.kernels.conftest import counted_products
from tests.ops.conftest import relative_error, values_and_gradients
from tests.ops.pairwise.test_margin import (
    DISTANCES,
    MININGS,
    classes_of,
    pairs,
    signs,
    triplets,
    with_one_far_away,
    with_one_that_holds,
)

from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_panels as engine
from thawkit.ops.pairwise.margin import KINDS

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def both(function, *inputs, truth=torch.float64):
    inputs = [x.to(DEVICE) for x in inputs]
    with ops.use_backend("triton"):
        got = values_and_gradients(function, *inputs)
    with ops.use_backend("reference"):
        expected = values_and_gradients(function, *(x.to(truth) for x in inputs))
    return list(zip(got, expected, strict=True))


def assert_equal_to_float64(function, *inputs, tolerance=5e-6):
    for got, truth in both(function, *inputs):
        assert got.dtype == torch.float32
        assert relative_error(got, truth) < tolerance


@pytest.fixture(params=["one panel", "panels of a few rows"])
def panels(request, monkeypatch):
    if request.param != "one panel":
        monkeypatch.setattr(engine, "PANEL_BYTES", 1500)


def labels_of(rows, classes, seed=0):
    return classes_of(rows, classes, seed).to(DEVICE)


SIZES = [(1, 1), (7, 2), (30, 1), (53, 9)]


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_triplets_equal_float64(rows, classes, mining, distance):
    margin = torch.tensor(0.21 * (5 if distance == "euclidean" else 1))
    function = triplets(labels_of(rows, classes), mining=mining, distance=distance, reduction="none")
    assert_equal_to_float64(function, signs(rows), margin)


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(("rows", "others", "classes"), [(1, 1, 1), (3, 50, 2), (31, 22, 7)])
def test_triplets_with_references_equal_float64(rows, others, classes, mining, distance):
    labels, ref_labels = labels_of(rows, classes), labels_of(others, classes, seed=1)
    function = triplets(labels, ref_labels, mining=mining, distance=distance, reduction="none")
    assert_equal_to_float64(function, signs(rows), signs(others, seed=1), torch.tensor(0.21))


@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum"])
@pytest.mark.parametrize("mining", MININGS)
def test_reductions_equal_float64(mining, reduction):
    alone = triplets(labels_of(24, 5), mining=mining, reduction=reduction)
    assert_equal_to_float64(alone, signs(24), torch.tensor(1.05))
    with_others = triplets(labels_of(24, 5), labels_of(31, 5, seed=1), mining=mining, reduction=reduction)
    assert_equal_to_float64(with_others, signs(24), signs(31, seed=1), torch.tensor(1.05))


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_pairs_equal_float64(rows, classes, distance):
    margins = (3.1, 5.7) if distance == "euclidean" else (0.3, 1.1)
    z = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
    for reduction in ("none", "mean"):
        function = pairs(labels_of(rows, classes), distance=distance, reduction=reduction)
        assert_equal_to_float64(function, z, *map(torch.tensor, margins), tolerance=2e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
def test_rows_that_occur_often(mining, distance):
    """Sixteen different rows: most distances are ties, or 0, where the gradient is 0."""
    for rows, classes in ((40, 4), (60, 15)):
        function = triplets(labels_of(rows, classes), mining=mining, distance=distance, reduction="none")
        assert_equal_to_float64(function, signs(rows, features=4), torch.tensor(0.21))


@pytest.mark.parametrize("place", ["anchor", "ref"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("classes", [1, 3])
def test_special_values_come_out_where_the_definition_has_them(classes, mining, distance, value, place):
    z, ref = signs(12), signs(20, seed=1)
    if place == "anchor":
        z = with_one_that_holds(value, z)
    else:
        ref = with_one_that_holds(value, ref)
    labels, ref_labels = labels_of(len(z), classes), labels_of(len(ref), classes, seed=1)
    function = triplets(labels, ref_labels, mining=mining, distance=distance, reduction="none")
    (got, truth), *gradients = both(function, z, ref, torch.tensor(0.21), truth=torch.float32)
    torch.testing.assert_close(got, truth, equal_nan=True, rtol=1e-5, atol=1e-5)
    for mine, exact in gradients:
        assert torch.equal(mine.isnan(), exact.isnan())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_special_values_among_the_anchors(kind, value):
    z, labels = with_one_that_holds(value, signs(30)), labels_of(31, 4)
    function, margins = pairs(labels, reduction="none"), [torch.tensor(0.3), torch.tensor(1.1)]
    if kind != "contrastive":
        function, margins = triplets(labels, mining=kind, reduction="none"), margins[:1]
    (got, truth), (dz, exact), *_ = both(function, z, *margins, truth=torch.float32)
    torch.testing.assert_close(got, truth, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert torch.equal(dz.isnan(), exact.isnan())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_far_away_leaves_the_distances_of_others_alone(kind):
    """The far row and the one of its class are no anchors: which triplet they mine is for rounding to say."""
    z, labels = with_one_far_away(40), torch.arange(40, device=DEVICE) // 2
    function = (
        (lambda z: F.contrastive(z, labels, negative_margin=2.0, reduction="none")[2:])
        if kind == "contrastive"
        else (lambda z: F.triplet_margin(z, labels, mining=kind, reduction="none")[2:])
    )
    (got, truth), (dz, exact) = both(function, z)
    assert relative_error(got, truth) < 1e-5
    assert relative_error(dz[2:], exact[2:]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    labels = labels_of(50, 6)
    function, margins = pairs(labels, reduction="sum"), [torch.tensor(0.25), torch.tensor(3.5)]
    if kind != "contrastive":
        function, margins = triplets(labels, mining=kind, reduction="sum"), margins[:1]
    with ops.use_backend("triton"):
        halves = values_and_gradients(function, *(x.to(DEVICE).half() for x in (signs(50), *margins)))
        full = values_and_gradients(function, *(x.to(DEVICE) for x in (signs(50), *margins)))
    assert [x.dtype for x in halves] == [torch.float32, *[torch.float16] * (1 + len(margins))]
    for half, wide in zip(halves, full, strict=True):
        torch.testing.assert_close(half, wide.to(half.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("mining", MININGS)
def test_only_wanted_gradients(mining, wanted):
    inputs = [x.to(DEVICE) for x in (signs(20), signs(33, seed=1), torch.tensor(0.21))]
    function = triplets(labels_of(20, 5), labels_of(33, 5, seed=1), mining=mining)
    with ops.use_backend("triton"):
        full = values_and_gradients(function, *inputs)[1:]
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        out = function(*leaves)
    found = torch.autograd.grad(out * 0.5, [leaves[i] for i in wanted])
    torch.testing.assert_close(list(found), [full[i] for i in wanted], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("need", [[True, True, True], [False, True, False], [False] * 3])
@pytest.mark.parametrize("kind", KINDS)
def test_operator_is_well_formed(kind, need):
    op = torch.ops.thawkit.margin_loss.default
    z, ref = signs(10).to(DEVICE), signs(14, seed=1).to(DEVICE)
    labels, ref_labels = labels_of(10, 3), labels_of(14, 3)
    margin, weights = torch.tensor(0.3, device=DEVICE), torch.rand(10, device=DEVICE)
    alone = z, None, margin, margin, labels, None
    torch.library.opcheck(op, (*alone, None, 0.5, kind, "cosine", "sum", need, "triton", "auto"))
    if kind != "contrastive":
        pair = z, ref, margin, None, labels, ref_labels
        torch.library.opcheck(
            op, (*pair, weights, 1.0, kind, "euclidean", "mean_nonzero", need, "triton", "auto")
        )


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(kind):
    z, labels = signs(20).to(DEVICE).requires_grad_(), labels_of(20, 4)
    if kind == "contrastive":
        step = lambda z: F.contrastive(z * 2, labels, reduction="none").square().sum()
    else:
        step = lambda z: F.triplet_margin(z * 2, labels, ref=z, ref_labels=labels, mining=kind) + 1
    with ops.use_backend("triton"):
        expected = torch.autograd.grad(step(z), z)
        got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(z), z)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind, monkeypatch):
    """No number is read back, of which a GPU would have to be done with."""

    def refuse(*_):
        raise AssertionError("a number is read back")

    z, labels = signs(20).to(DEVICE).requires_grad_(), labels_of(20, 4)
    margin = torch.tensor(0.3, device=DEVICE)
    with ops.use_backend("triton"):
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        from thawkit.ops.pairwise import triton_margin

        arguments = z.detach(), None, margin, margin, labels, None, None, 1.0
        triton_margin.margin_loss(*arguments, KINDS.index(kind), 0, 1, True, False, True)


def test_the_hardest_triplets_cost_one_product(monkeypatch):
    """Of the others' three; a row's two weights are added, not multiplied by matrices."""
    made = counted_products(monkeypatch, engine)
    z, labels = signs(20).to(DEVICE).requires_grad_(), labels_of(20, 4)
    for kind, products in (("hard", 1), ("contrastive", 2), ("semihard", 3), ("all", 3)):
        made.clear()
        with ops.use_backend("triton"):
            F.contrastive(z, labels) if kind == "contrastive" else F.triplet_margin(z, labels, mining=kind)
        assert len(made) == products
