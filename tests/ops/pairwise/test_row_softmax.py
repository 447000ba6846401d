"""The row-wise softmax with targets, biases, labels, margins and weights: kernel against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.pairwise import row_softmax, row_softmax_and_statistics
from thawkit.ops.pairwise.row_softmax import LABELS, Columns


def problem(rows: int, keys: int, features: int, seed: int, *, classes: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "q": torch.randn(rows, features, generator=generator),
        "k": torch.randn(keys, features, generator=generator),
        "logit_scale": torch.tensor(0.7),
        "bias": torch.randn(keys, generator=generator),
        "row_weight": torch.rand(rows, generator=generator) + 0.1,
        "target": torch.randint(0, keys, (rows,), generator=generator),
        "row_labels": torch.randint(0, classes, (rows,), generator=generator, dtype=torch.int32),
        "key_labels": torch.randint(0, classes, (keys,), generator=generator, dtype=torch.int32),
    }


LEAVES = ("q", "k", "logit_scale", "bias", "row_weight")


def run(tensors: dict[str, Tensor], backend: str, **options) -> list[Tensor]:
    """Loss, statistics, and gradients of a weighted sum of what comes out."""
    if backend == "reference":
        tensors = {n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}
    leaves = {n: tensors[n].clone().requires_grad_() for n in LEAVES if n in tensors}
    with ops.use_backend(backend):
        loss, statistics = row_softmax_and_statistics(**{**tensors, **leaves}, **options)
        upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        finite = torch.where(loss.isfinite(), loss * upstream, 0.0)
        gradients = torch.autograd.grad(finite.sum(), list(leaves.values()), allow_unused=True)
    return [loss.detach(), *statistics, *(x for x in gradients if x is not None)]


def assert_same(got: list[Tensor], truth: list[Tensor], tolerance: float = 2e-5) -> None:
    assert len(got) == len(truth)
    for a, b in zip(got, truth, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())
        usable = b.isfinite()
        size = b[usable].abs().max().clamp_min(1.0).item() if usable.any() else 1.0
        torch.testing.assert_close(a[usable].double(), b[usable].double(), rtol=0, atol=tolerance * size)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 60),
    keys=st.integers(1, 90),
    features=st.integers(1, 40),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.7, -0.7]),
    given_target=st.booleans(),
    without=st.sets(st.sampled_from(["bias", "row_weight", "row_labels"])),
    labels=st.sampled_from(LABELS),
    margin=st.sampled_from([float("inf"), 0.3, -0.2]),
    excluded=st.sampled_from([None, 0, 3]),
    normalize=st.booleans(),
    reduce=st.booleans(),
)
def test_every_combination_of_what_counts(
    rows, keys, features, seed, scale, given_target, without, labels, margin, excluded, normalize, reduce
):
    tensors = problem(rows, keys, features, seed)
    for name in ("q", "k"):
        tensors[name][:, 0] += 3  # no row so short that its direction is all rounding
    if given_target:
        tensors["target"][::5] = -1
    else:
        rows = min(rows, keys)
        del tensors["target"]
        for name in ("q", "row_weight", "row_labels"):
            tensors[name] = tensors[name][:rows]
    if margin < math.inf:
        without = without | {"bias"}
    for name in without:
        tensors.pop(name)
    tensors["logit_scale"] = torch.tensor(scale)
    if "row_labels" in without:
        labels = "ignored"
    if not reduce:
        tensors.pop("row_weight", None)
    columns = Columns(excluded=excluded, labels=labels, margin=margin)
    options = {"columns": columns, "normalize": normalize, "reduce": reduce}
    assert_same(run(tensors, "cpu", **options), run(tensors, "reference", **options))


def test_a_margin_takes_no_bias():
    tensors = problem(5, 9, 3, 0)
    with pytest.raises(ThawkitError, match=r"bias must be None where columns have a margin, got margin=0\.1"):
        row_softmax(tensors["q"], tensors["k"], 1.0, bias=tensors["bias"], columns=Columns(margin=0.1))


@pytest.mark.parametrize("margin", [math.inf, 0.2, -0.2])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_positive_of_minus_infinity_costs_infinity(scale, margin):
    tensors = {n: x for n, x in problem(5, 9, 3, 0).items() if n in ("q", "k")}
    tensors["q"][:, 0] = 1.0
    tensors["k"][2] = torch.tensor([-scale * math.inf, 0.0, 0.0])
    tensors["logit_scale"] = torch.tensor(scale)
    options = {"columns": Columns(margin=margin), "reduce": False}
    got, truth = run(tensors, "cpu", **options)[0], run(tensors, "reference", **options)[0]
    assert_same([got], [truth])
    assert got[2] == math.inf or margin < math.inf


def test_large_problems_share_their_sums_between_threads():
    tensors = problem(700, 1500, 70, 3)
    assert_same(run(tensors, "cpu"), run(tensors, "reference"))


def test_a_row_of_weight_zero_has_no_gradient_whatever_it_holds():
    tensors = problem(6, 9, 5, 0)
    tensors["row_weight"][2] = 0.0
    tensors["target"][2] = -1
    tensors["key_labels"][:] = 1
    tensors["row_labels"][2] = 1  # all its columns are dropped: the log-sum-exp is -inf
    columns = Columns(labels="drop same")
    got = run(tensors, "cpu", columns=columns)
    assert all(x.isfinite().all() for x in (got[0], *got[4:]))
    assert not got[4][2].any()
    assert_same(got, run(tensors, "reference", columns=columns))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("keys", "dtype"), [(9, torch.float32), (9, torch.bfloat16), (1000, torch.float32)])
def test_a_row_of_weight_zero_may_hold_what_is_no_number(keys, dtype, backend, normalize, value):
    tensors = problem(6, keys, 5, 0)
    tensors = {n: tensors[n] for n in ("q", "k", "logit_scale", "target", "row_weight")}
    tensors["q"], tensors["k"] = tensors["q"].to(dtype), tensors["k"].to(dtype)
    tensors["row_weight"][2] = 0.0
    expected = run(tensors, backend, normalize=normalize)
    tensors["q"][2, 3] = value
    got = run(tensors, backend, normalize=normalize)
    torch.testing.assert_close(got[0], expected[0])
    dq, dk, dscale, dweight = got[4:]
    assert not dq[2].any()
    assert dweight[2] == 0
    expected[-1][2] = 0  # there its loss was a number
    torch.testing.assert_close([dq, dk, dscale, dweight], expected[4:])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["q", "k", "bias"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("keys", "features"), [(9, 5), (1000, 5)])
def test_what_is_not_finite_comes_out_of_a_log_sum_exp_as_torch_has_it(
    keys, features, backend, reduce, where, value
):
    tensors = problem(6, keys, features, 0)
    tensors = {n: tensors[n] for n in ("q", "k", "bias")}
    tensors[where].view(-1)[3] = value
    if where == "q":
        tensors[where][2, 3], tensors["k"][4, 1] = value, math.nan

    def log_sum_exp(**leaves):
        log_sum = (leaves["q"] @ leaves["k"].t() + leaves["bias"]).logsumexp(1)
        return log_sum.sum() if reduce else log_sum

    def engine(**leaves):
        with ops.use_backend(backend):
            return row_softmax(**leaves, logit_scale=1.0, target=torch.full((6,), -1), reduce=reduce)

    found = []
    for function in engine, log_sum_exp:
        leaves = {n: x.clone().requires_grad_() for n, x in tensors.items()}
        value_of = function(**leaves)
        gradients = torch.autograd.grad(value_of.sum(), list(leaves.values()))
        found.append([value_of.detach(), *gradients])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [9, 1000])
def test_the_largest_logit_beside_a_nan_is_none(keys):
    tensors = problem(6, keys, 5, 0)
    tensors = {n: tensors[n] for n in ("q", "k", "target")}
    tensors["k"][3, 1] = math.nan
    tensors["target"][2] = -1
    _, statistics = row_softmax_and_statistics(**tensors, logit_scale=1.0)
    assert statistics.maximum.isnan().all()
    assert not statistics.top1.any()


def test_offset_says_which_rows_of_the_keys_are_the_positives():
    tensors = problem(5, 12, 7, 1)
    q, k = tensors["q"], tensors["k"]
    got, statistics = row_softmax_and_statistics(q, k, 1.0, columns=Columns(offset=4))
    expected = torch.nn.functional.cross_entropy(q @ k.T, torch.arange(4, 9), reduction="sum")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(statistics.log_sum_exp, (q @ k.T).logsumexp(1))
    assert torch.equal(statistics.top1, (q @ k.T).argmax(1) == torch.arange(4, 9))


def test_scale_of_zero_takes_the_reference_for_what_the_kernel_cannot():
    tensors = problem(5, 12, 7, 1)
    tensors["logit_scale"] = torch.tensor(0.0)
    with ops.use_backend(None):
        loss = row_softmax(**tensors)
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_get_gradients_of_their_dtype(dtype):
    tensors = problem(20, 30, 8, 0)
    q, k = (tensors[n].to(dtype).requires_grad_() for n in ("q", "k"))
    loss = row_softmax(q, k, 0.5, target=tensors["target"], bias=tensors["bias"])
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert loss.dtype == torch.float32
    assert dq.dtype == dk.dtype == dtype


def test_gradcheck_and_double_backward():
    tensors = problem(5, 7, 3, 0)
    leaves = [tensors[n].double().requires_grad_() for n in LEAVES]

    def function(q, k, scale, bias, weight):
        return row_softmax(q, k, scale, bias=bias, row_weight=weight, target=tensors["target"])

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
