"""The ranking loss against loops over each query's candidates in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.pairwise.ranking import DIRECTIONS, HARDNESS

CHOICES = [DIRECTIONS[:1], ("doc_to_query", "query_to_doc"), (DIRECTIONS[0], DIRECTIONS[3]), DIRECTIONS]


def batch(rows, columns=1, features=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(rows, features, generator=generator)
    noise = torch.randn(columns, rows, features, generator=generator)
    return queries, (queries + noise).flatten(0, 1)


def definition(
    q,
    d,
    scale,
    directions=DIRECTIONS[:1],
    partition_mode="joint",
    hardness_mode=None,
    hardness_strength=0.0,
    normalize=True,
    reduction="mean",
):
    if normalize:
        q, d = (torch.stack([row / row.norm() for row in x]) for x in (q, d))
    n = len(q)

    def logits(direction, i):
        if direction == "query_to_query":
            return [scale * q[i].dot(q[j]) for j in range(n) if j != i]
        if direction == "doc_to_query":
            return [scale * d[i].dot(q[j]) for j in range(n)]
        if direction == "doc_to_doc":
            return [scale * d[i].dot(d[j]) for j in range(len(d)) if j % n != i]
        found = []
        for j in range(len(d)):
            s = q[i].dot(d[j])
            own = j % n == i
            hard = {
                None: False,
                "in_batch_negatives": not own,
                "hard_negatives": own and j != i,
                "all_negatives": j != i,
            }[hardness_mode]
            found.append(scale * s + (hardness_strength * s.detach() if hard else 0))
        return found

    rows = []
    for i in range(n):
        candidates = [logits(direction, i) for direction in directions]
        if partition_mode == "joint":
            candidates = [[c for direction in candidates for c in direction]]
        log_sums = torch.stack([torch.stack(c).logsumexp(0) for c in candidates])
        rows.append(log_sums.mean() - scale * q[i].dot(d[i]))
    rows = torch.stack(rows)
    return rows if reduction == "none" else getattr(rows, reduction)()


def loss(**options):
    return lambda q, d, scale: F.multiple_negatives_ranking(q, d, logit_scale=scale, **options)


def assert_is_its_definition(q, d, scale=10.0, **options):
    oracle.assert_is(
        loss(**options), lambda *inputs: definition(*inputs, **options), q, d, torch.tensor(scale)
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("directions", CHOICES)
def test_ranking_is_its_definition(directions, rows, columns, reduction):
    inputs = batch(rows, columns)
    assert_is_its_definition(*inputs, directions=directions, reduction=reduction)
    assert_is_its_definition(*inputs, 0.5, directions=directions, reduction=reduction, normalize=False)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("directions", CHOICES[:2])
def test_ranking_one_softmax_a_direction(directions, columns, reduction):
    options = {"directions": directions, "partition_mode": "per_direction", "reduction": reduction}
    assert_is_its_definition(*batch(9, columns), **options)


@pytest.mark.parametrize("directions", CHOICES[::3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (9, 1), (9, 3)])
@pytest.mark.parametrize("mode", HARDNESS)
def test_ranking_hardness(mode, rows, columns, directions):
    for strength in (0.0, 4.0):
        options = {"hardness_mode": mode, "hardness_strength": strength, "directions": directions}
        assert_is_its_definition(*batch(rows, columns), **options)


def test_ranking_saturated():
    q, d = batch(9, 2)
    d[:9] = q
    q[3] = q[5]
    for mode in (None, *HARDNESS):
        assert_is_its_definition(
            q, d, 100.0, directions=DIRECTIONS, hardness_mode=mode, hardness_strength=9.0, reduction="none"
        )


def test_ranking_of_pairs_in_both_directions_is_clip():
    q, d = batch(9)
    got = F.multiple_negatives_ranking(q, d, directions=CHOICES[1], partition_mode="per_direction")
    torch.testing.assert_close(got, F.clip(q, d, logit_scale=20.0))


def test_ranking_no_rows():
    q = torch.zeros(0, 4, requires_grad=True)
    for options in (
        {},
        {"directions": DIRECTIONS, "hardness_mode": "all_negatives", "hardness_strength": 1.0},
    ):
        assert F.multiple_negatives_ranking(q, q, reduction="none", **options).shape == (0,)
        assert F.multiple_negatives_ranking(q, q, reduction="sum", **options).item() == 0


@pytest.mark.parametrize("directions", CHOICES[::3])
def test_ranking_twice_differentiable(directions):
    q, d = batch(4, 2, features=3)
    oracle.assert_differentiable_twice(loss(directions=directions), q, d, torch.tensor(3.0))


@pytest.mark.parametrize("mode", HARDNESS)
def test_ranking_hardness_is_a_constant_to_second_derivatives_too(mode):
    q, d = batch(4, 2, features=3)

    def penalty(function, inputs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        slopes = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)

    options = {"hardness_mode": mode, "hardness_strength": 4.0}
    inputs = q, d, torch.tensor(3.0)
    truth = penalty(lambda *x: definition(*x, **options), [x.double() for x in inputs])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        got = penalty(loss(**options), [x.to(dtype) for x in inputs])
        for a, b in zip(got, truth, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("hardness", [{}, {"hardness_mode": "all_negatives", "hardness_strength": 3.0}])
@pytest.mark.parametrize("directions", CHOICES[::3])
def test_ranking_keeps_to_what_all_losses_do(directions, hardness):
    function, inputs = loss(directions=directions, **hardness), (*batch(9, 2), torch.tensor(5.0))
    oracle.assert_layout_does_not_matter(function, *inputs)
    oracle.assert_autocast_changes_nothing(function, *inputs)
    oracle.assert_half_precision_is_lifted(function, *inputs)
    oracle.assert_compiles(function, *inputs)


Q = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("d", "options", "says"),
    [
        (torch.zeros(3), {}, "documents must have shape"),
        (Q[:2], {}, "documents must have one row or more for each of 3 queries, as many for each, got 2"),
        (torch.zeros(7, 4), {}, "documents must have one row or more for each of 3 queries"),
        (Q.double(), {}, "queries and documents must have the same dtype"),
        (Q, {"logit_scale": math.nan}, "logit_scale must be positive and finite"),
        (Q, {"directions": ("doc_to_query",)}, "directions must be several names, 'query_to_doc' among them"),
        (Q, {"directions": ("query_to_doc", "up")}, "directions must be one of"),
        (Q, {"partition_mode": "both"}, "partition_mode must be one of"),
        (
            Q,
            {"directions": DIRECTIONS, "partition_mode": "per_direction"},
            "needs the positive among each direction's candidates",
        ),
        (Q, {"hardness_mode": "most"}, "hardness_mode must be one of"),
        (Q, {"hardness_strength": math.inf}, "hardness_strength must be finite"),
        (Q, {"hardness_strength": -1.0}, "hardness_strength must be at least 0"),
        (Q, {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_ranking_bad_input(d, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.multiple_negatives_ranking(Q, d, **options)
    with pytest.raises(ThawkitError, match="queries has no rows"):
        F.multiple_negatives_ranking(Q[:0], Q[:0])
