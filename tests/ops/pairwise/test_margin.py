"""Triplets and contrastive pairs on the engine: kernel against the float64 definition.

Which triplets are mined turns on comparisons of distances, so most rows here hold -1 and 1 as many times as
not: their distances and cosines are exact in float32, and ties are ties in float64 too.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.conftest import against_reference, relative_error, values_and_gradients
from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise.margin import KINDS

MININGS = KINDS[:3]
DISTANCES = ["euclidean", "cosine"]
REDUCTIONS = ["none", "mean", "mean_nonzero", "sum"]


def signs(rows: int, features: int = 16, seed: int = 0) -> Tensor:
    """(rows, features) of -1 and 1 whose mean is 0, so that no distance is rounded."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(0, 2, (rows // 2, features), generator=generator) * 2.0 - 1
    return torch.cat((half, -half, torch.zeros(rows % 2, features)))[
        torch.randperm(rows, generator=generator)
    ]


def with_one_that_holds(value: float, rows: Tensor) -> Tensor:
    """One row more, so that the mean of the others is still 0."""
    spoilt = torch.ones(1, rows.shape[1])
    spoilt[0, 2] = value
    return torch.cat((rows[:4], spoilt, rows[4:]))


def classes_of(rows: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, (rows,), generator=generator) * 7 - 3


def triplets(labels: Tensor, ref_labels: Tensor | None = None, **options):
    """The loss as a function of what has gradients: embeddings, references if there are any, the margin."""
    if ref_labels is None:
        return lambda z, m: F.triplet_margin(z, labels, margin=m, **options)
    return lambda z, ref, m: F.triplet_margin(z, labels, margin=m, ref=ref, ref_labels=ref_labels, **options)


def pairs(labels: Tensor, **options):
    return lambda z, positive, negative: F.contrastive(
        z, labels, positive_margin=positive, negative_margin=negative, **options
    )


def assert_equal_to_the_definition(function, *inputs: Tensor, tolerance: float = 5e-6) -> None:
    assert max(against_reference(function, *inputs)) < tolerance


SIZES = [(1, 1), (2, 2), (7, 2), (40, 5), (97, 97), (150, 1), (300, 40), (530, 3), (801, 100)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_triplets_equal_float64(rows, classes, mining, distance, reduction):
    margin = torch.tensor(0.21 * (5 if distance == "euclidean" else 1))
    function = triplets(classes_of(rows, classes), mining=mining, distance=distance, reduction=reduction)
    assert_equal_to_the_definition(function, signs(rows), margin)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(
    ("rows", "others", "classes"), [(1, 1, 1), (3, 50, 2), (50, 3, 2), (260, 410, 60), (410, 260, 3)]
)
def test_triplets_with_references_equal_float64(rows, others, classes, mining, distance, reduction):
    labels, ref_labels = classes_of(rows, classes), classes_of(others, classes, seed=1)
    function = triplets(labels, ref_labels, mining=mining, distance=distance, reduction=reduction)
    assert_equal_to_the_definition(function, signs(rows), signs(others, seed=1), torch.tensor(0.21))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_pairs_equal_float64(rows, classes, distance, reduction):
    margins = (3.1, 5.7) if distance == "euclidean" else (0.3, 1.1)
    function = pairs(classes_of(rows, classes), distance=distance, reduction=reduction)
    z = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
    assert_equal_to_the_definition(function, z, *map(torch.tensor, margins), tolerance=2e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["all", "contrastive"])
def test_rounded_distances(kind, distance):
    """A triplet whose loss is next to 0 may be on the wrong side of it, but it is one of very many."""
    z = torch.randn(501, 130, generator=torch.Generator().manual_seed(0)) + 1
    labels = classes_of(501, 30)
    if kind == "all":
        function, margins = triplets(labels, distance=distance), [torch.tensor(0.3)]
    else:
        function, margins = pairs(labels, distance=distance), [torch.tensor(0.4), torch.tensor(1.3)]
        margins[1] *= 12 if distance == "euclidean" else 1
    with ops.use_backend("cpu"):
        got = values_and_gradients(function, z, *margins)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, z.double(), *(m.double() for m in margins))
    for mine, exact in zip(got, truth, strict=True):
        assert (mine.double() - exact).norm() < 1e-4 * exact.norm()


def clear_problem(rows, others, features, classes, seed, distance, margin):
    """Labelled rows without two distances so close that rounding decides, or None."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=generator) + 0.2
    ref = torch.randn(others, features, generator=generator) if others else None
    y = z if ref is None else ref
    d = ops.pairwise.reference.margin.distances(z.double(), y.double(), distance)
    if ref is None:
        d = d.fill_diagonal_(-9)
    for shift in (0.0, margin):
        gaps = (d[:, :, None] + shift - d[:, None, :]).abs()
        gaps[:, range(len(y)), range(len(y))] = 1
        if gaps.numel() and gaps.min() < 1e-5:
            return None
    return z, ref, classes_of(rows, classes, seed), classes_of(others, classes, seed + 1)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40),
    others=st.integers(0, 60),
    features=st.integers(1, 20),
    classes=st.integers(1, 12),
    seed=st.integers(0, 1000),
    distance=st.sampled_from(DISTANCES),
    mining=st.sampled_from(MININGS),
    margin=st.sampled_from([-0.3, 0.0, 0.25, 3.0]),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_triplets(rows, others, features, classes, seed, distance, mining, margin, reduction):
    problem = clear_problem(rows, others, features + 2, classes, seed, distance, margin)
    if problem is None:
        return
    z, ref, labels, ref_labels = problem
    inputs, all_labels = ((z,), (labels,)) if ref is None else ((z, ref), (labels, ref_labels))
    options = {"mining": mining, "distance": distance}
    with ops.use_backend("reference"):
        losses = triplets(*all_labels, **options, reduction="none")
        largest = losses(*(x.double() for x in inputs), torch.tensor(margin).double()).max()
    if 0 < largest < 0.01:
        return  # what distances of about 1 leave, in which their rounding shows
    function = triplets(*all_labels, **options, reduction=reduction)
    assert_equal_to_the_definition(function, *inputs, torch.tensor(margin), tolerance=1e-4)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_rows_that_occur_often(mining, distance):
    """Sixteen different rows: most distances are ties, or 0, where the gradient is 0."""
    for rows, classes in ((64, 4), (400, 60), (400, 2)):
        z, labels = signs(rows, features=4), classes_of(rows, classes)
        for reduction in ("none", "mean_nonzero"):
            function = triplets(labels, mining=mining, distance=distance, reduction=reduction)
            assert_equal_to_the_definition(function, z, torch.tensor(0.21))


@pytest.mark.parametrize("features", [1, 100, 3000])
def test_equal_rows_have_distance_zero_whatever_their_length(features):
    one = torch.randn(features, generator=torch.Generator().manual_seed(1)) * 1e3
    z = torch.cat((one.expand(20, -1), -one.expand(20, -1), torch.randn(60, features)))
    labels = torch.tensor([0] * 40 + [1] * 60)
    loss, dz = values_and_gradients(lambda z: F.contrastive(z, labels, negative_margin=0.0), z)
    expected = (2 * one.double()).square().sum() * 400
    torch.testing.assert_close(loss.double() * 100 * 99 / 2 - expected, expected * 0, rtol=0, atol=1e9)
    assert dz.isfinite().all()
    value = F.contrastive(one.expand(20, -1), labels[:20], reduction="none")
    assert not value.any()


@pytest.mark.parametrize(
    ("mining", "length"), [(m, length) for m in MININGS for length in (0.0, 2**-20)] + [("all", 1e-13)]
)
def test_rows_without_a_direction(mining, length):
    z, labels = signs(40), classes_of(40, 6)
    z[3] *= length
    function = triplets(labels, mining=mining, distance="cosine", reduction="none")
    with ops.use_backend("cpu"):
        got = values_and_gradients(function, z, torch.tensor(0.21))
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, z.double(), torch.tensor(0.21).double())
    assert relative_error(got[0], truth[0]) < 1e-5
    for mine, exact in zip(got[1], truth[1], strict=True):  # by row: that of a short one is large
        assert relative_error(mine, exact) < 1e-5


@pytest.mark.parametrize("place", ["anchor", "ref"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("classes", [1, 3, 30])
def test_special_values_come_out_where_the_definition_has_them(classes, mining, distance, value, place):
    z, ref = signs(30), signs(50, seed=1)
    if place == "anchor":
        z = with_one_that_holds(value, z)
    else:
        ref = with_one_that_holds(value, ref)
    labels, ref_labels = classes_of(len(z), classes), classes_of(len(ref), classes, seed=1)
    for reduction in ("none", "mean"):
        function = triplets(labels, ref_labels, mining=mining, distance=distance, reduction=reduction)
        with ops.use_backend("cpu"):
            got = values_and_gradients(function, z, ref, torch.tensor(0.21))
        with ops.use_backend("reference"):
            truth = values_and_gradients(function, z, ref, torch.tensor(0.21))
        torch.testing.assert_close(got[0], truth[0], equal_nan=True, rtol=1e-5, atol=1e-5)
        for mine, exact in zip(got[1:], truth[1:], strict=True):
            assert torch.equal(mine.isnan(), exact.isnan())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("distance", DISTANCES)
def test_special_values_of_pairs(distance, value):
    z, labels = with_one_that_holds(value, signs(30)), classes_of(31, 4)
    function = pairs(labels, distance=distance, reduction="none")
    margins = torch.tensor(0.3), torch.tensor(1.1)
    with ops.use_backend("cpu"):
        got = values_and_gradients(function, z, *margins)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, z, *margins)
    torch.testing.assert_close(got, truth, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("mining", MININGS)
def test_only_wanted_gradients(mining, wanted):
    z, ref = signs(60), signs(90, seed=1)
    labels, ref_labels = classes_of(60, 9), classes_of(90, 9, seed=1)
    for reduction in ("none", "mean"):
        function = triplets(labels, ref_labels, mining=mining, reduction=reduction)
        leaves = [x.clone() for x in (z, ref, torch.tensor(0.21))]
        full = values_and_gradients(function, *leaves)[1:]
        for i in wanted:
            leaves[i].requires_grad_()
        out = function(*leaves)
        upstream = torch.linspace(0.5, 1.5, max(out.numel(), 1))[: out.numel()].reshape(out.shape)
        found = torch.autograd.grad((out * upstream).sum(), [leaves[i] for i in wanted])
        torch.testing.assert_close(list(found), [full[i] for i in wanted], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_follows_torch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in KINDS:
            z, labels = signs(900), classes_of(900, 100)
            function = pairs(labels) if kind == "contrastive" else triplets(labels, mining=kind)
            margins = [torch.tensor(0.21)] * (2 if kind == "contrastive" else 1)
            assert_equal_to_the_definition(function, z, *margins)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_extra_memory_is_a_sliver_of_the_matrix(kind):
    z, labels = signs(2048, 64).requires_grad_(), torch.arange(2048) // 8
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        loss = F.contrastive(z, labels) if kind == "contrastive" else F.triplet_margin(z, labels, mining=kind)
        loss.backward()
    allocated = sum(
        max(e.self_device_memory_usage, e.self_cpu_memory_usage, 0) for e in profile.key_averages()
    )
    assert allocated < 2048 * 2048 * 4 / 2


def test_backward_twice_gives_the_same():
    z, labels = signs(30).requires_grad_(), classes_of(30, 4)
    loss = F.triplet_margin(z, labels)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0].clone()
    loss.backward()
    torch.testing.assert_close(z.grad, first, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_of_the_kernel_equals_the_definition(kind, reduction):
    z, _, labels, _ = clear_problem(20, 0, 8, 4, 3, "euclidean", 0.3)

    def second(z):
        if kind == "contrastive":
            loss = F.contrastive(z, labels, negative_margin=3.0, reduction=reduction)
        else:
            loss = F.triplet_margin(z, labels, margin=0.3, mining=kind, reduction=reduction)
        (dz,) = torch.autograd.grad(loss.square().sum(), z, create_graph=True)
        return torch.autograd.grad(dz.square().sum(), z)[0]

    got = second(z.requires_grad_())
    with ops.use_backend("reference"):
        truth = second(z.detach().double().requires_grad_())
    assert relative_error(got, truth) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mining", MININGS)
def test_half_precision_is_computed_in_float32(mining, dtype):
    labels = classes_of(100, 9)
    function = triplets(labels, mining=mining, reduction="sum")
    halves = values_and_gradients(function, signs(100).to(dtype), torch.tensor(0.25).to(dtype))
    floats = values_and_gradients(function, signs(100), torch.tensor(0.25))
    assert [x.dtype for x in halves] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(halves[0], floats[0], rtol=0, atol=0)
    torch.testing.assert_close(halves[1], floats[1].to(dtype), rtol=0, atol=0)


def test_labels_of_any_integer_type():
    z = signs(40)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool):
        labels = torch.arange(40) % 2
        expected = F.triplet_margin(z, labels)
        got = F.triplet_margin(z, labels.to(dtype), ref=z, ref_labels=labels)
        assert got.isfinite()
        torch.testing.assert_close(F.triplet_margin(z, labels.to(dtype)), expected)


@pytest.mark.parametrize("mining", MININGS)
def test_rows_without_features(mining):
    z, ref = torch.zeros(6, 0), torch.zeros(9, 0)
    labels = torch.arange(6) % 2
    loss = F.triplet_margin(z, labels, ref=ref, ref_labels=torch.arange(9) % 2, mining=mining, margin=0.5)
    assert loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize("need", [[True, True, True], [False, True, False], [False] * 3])
@pytest.mark.parametrize("kind", KINDS)
def test_operator_is_well_formed(kind, need):
    op = torch.ops.thawkit.margin_loss.default
    z, ref = signs(10), signs(14, seed=1)
    labels, ref_labels = classes_of(10, 3), classes_of(14, 3)
    margin, weights = torch.tensor(0.3), torch.rand(10)
    alone = z, None, margin, torch.tensor(1.0), labels, None
    torch.library.opcheck(op, (*alone, None, 0.5, kind, "cosine", "sum", need, "cpu", "auto"))
    if kind != "contrastive":
        both = z, ref, margin, None, labels, ref_labels
        torch.library.opcheck(
            op, (*both, weights, 1.0, kind, "euclidean", "mean_nonzero", need, "cpu", "auto")
        )


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(kind):
    z, labels = signs(20), classes_of(20, 4)
    if kind == "contrastive":
        step = lambda z: F.contrastive(z * 2, labels, reduction="none").square().sum()
    else:
        step = lambda z: F.triplet_margin(z * 2, labels, ref=z, ref_labels=labels, mining=kind) + 1
    z.requires_grad_()
    expected = torch.autograd.grad(step(z), z)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(z), z)
    torch.testing.assert_close(got, expected)


def with_one_far_away(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 16, generator=generator) * 0.25
    z[0] = 1e5 * torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    return z


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("rows", [3, 4, 64, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_far_away_leaves_the_distances_of_others_alone(kind, rows, backend):
    z, labels = with_one_far_away(rows), torch.arange(rows) // 2
    if kind == "contrastive":
        function = lambda z: F.contrastive(z, labels, negative_margin=2.0, reduction="none")
    else:
        function = lambda z: F.triplet_margin(z, labels, mining=kind, reduction="none")
    with ops.use_backend(backend):
        got = values_and_gradients(function, z)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, z.double())
    near = slice(2, None)  # not those of its class, whose losses it is in
    assert relative_error(got[0][near], truth[0][near]) < 1e-5
    assert relative_error(got[1][near], truth[1][near]) < 1e-4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_row_is_infinitely_far_from_others(kind, backend):
    z, labels = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) // 4
    z[0, 3], z[0, 5] = math.inf, -math.inf
    if kind == "contrastive":
        function = lambda z: F.contrastive(z, labels, negative_margin=5.0, reduction="none")
    else:
        function = lambda z: F.triplet_margin(z, labels, mining=kind, reduction="none")
    with ops.use_backend(backend):
        got = function(z)
        z[0] = 1e6
        expected = function(z)
    assert not got[0].isfinite()
    assert (got[1:4] == math.inf).all()
    torch.testing.assert_close(got[4:], expected[4:], rtol=1e-5, atol=1e-5)


def test_rows_that_differ_by_rounding_have_distance_zero():
    one = torch.randn(1, 33, generator=torch.Generator().manual_seed(1))
    nearly = one * (1 + torch.arange(24)[:, None] * torch.finfo(torch.float32).eps / 2)
    z, labels = torch.cat((nearly, -nearly)), torch.arange(48) // 24
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            value, gradient = values_and_gradients(lambda z: F.contrastive(z, labels, negative_margin=0.0), z)
        assert value == 0
        assert not gradient.any()
