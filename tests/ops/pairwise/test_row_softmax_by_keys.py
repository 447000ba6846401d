"""The layout of many keys (a classifier's rows): panels of its queries, keys shared out between threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.pairwise.test_row_softmax import assert_same, problem, run
from thawkit.ops.pairwise import row_softmax
from thawkit.ops.pairwise.row_softmax import Columns

KEYS = 500  # enough for the layout with two threads, on any instruction set


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def many_keys(rows: int, features: int, seed: int = 0, keys: int = KEYS) -> dict[str, torch.Tensor]:
    tensors = problem(rows, keys, features, seed)
    return {n: x for n, x in tensors.items() if not n.endswith("labels")}


@settings(max_examples=15, deadline=None)
@given(
    rows=st.sampled_from([1, 31, 33, 95, 97, 192, 193, 400]),
    keys=st.integers(KEYS, 700),
    features=st.integers(1, 70),
    seed=st.integers(0, 1000),
    without=st.sets(st.sampled_from(["bias", "row_weight"])),
    reduce=st.booleans(),
)
def test_as_defined(rows, keys, features, seed, without, reduce):
    tensors = many_keys(rows, features, seed, keys)
    tensors["target"][::5] = -1
    for name in {*without, *([] if reduce else ["row_weight"])}:
        tensors.pop(name, None)
    assert_same(run(tensors, "cpu", reduce=reduce), run(tensors, "reference", reduce=reduce))


@pytest.mark.parametrize("name", ["q", "k", "logit_scale", "bias"])
def test_one_gradient_alone(name):
    tensors = many_keys(100, 33)
    if name == "logit_scale":
        del tensors["bias"]
    leaf = tensors[name].requires_grad_()
    (got,) = torch.autograd.grad(row_softmax(**tensors), leaf)
    wide = {n: x.detach().double() if x.is_floating_point() else x for n, x in tensors.items()}
    (truth,) = torch.autograd.grad(row_softmax(**{**wide, name: wide[name].requires_grad_()}), wide[name])
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=2e-5 * truth.abs().max().item())


def test_saturated_logits():
    tensors = many_keys(50, 16)
    tensors["logit_scale"] = torch.tensor(100.0)
    tensors["q"] = 3 * tensors["k"][tensors["target"]]
    got, truth = run(tensors, "cpu"), run(tensors, "reference")
    assert_same(got, truth)
    assert got[1].max() < 1e30


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["q", "k"])
def test_what_is_not_finite_comes_out_where_torch_has_it(where, value):
    tensors = many_keys(40, 8)
    tensors[where][7, 2] = value
    plain = {n: tensors[n].clone().requires_grad_() for n in ("q", "k", "bias")}
    logits = plain["q"] @ plain["k"].T + plain["bias"]
    expected = torch.nn.functional.cross_entropy(logits, tensors["target"], reduction="none")
    leaves = {n: tensors[n].clone().requires_grad_() for n in ("q", "k", "bias")}
    loss = row_softmax(**leaves, logit_scale=1.0, target=tensors["target"], reduce=False)
    assert torch.equal(loss.isnan(), expected.isnan())
    assert torch.equal(loss.isposinf(), expected.isposinf())
    got = torch.autograd.grad(loss.sum(), list(leaves.values()))
    for a, b in zip(got, torch.autograd.grad(expected.sum(), list(plain.values())), strict=True):
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite)
        torch.testing.assert_close(a[finite], b[finite], rtol=1e-4, atol=1e-5)


def test_bits_are_the_same_in_every_run():
    tensors = many_keys(300, 40)
    first, second = run(tensors, "cpu"), run(tensors, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_workspace_does_not_grow_with_the_keys_features():
    def workspace(features: int) -> int:
        tensors = many_keys(256, features, keys=4000)
        q, k = tensors["q"].requires_grad_(), tensors["k"].requires_grad_()
        with torch.profiler.profile(profile_memory=True) as profile:
            loss = row_softmax(q, k, 1.0, target=tensors["target"], columns=Columns())
        del loss
        sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.nbytes() > 0]
        sizes.remove(k.numel() * 4)
        return max(sizes)

    # a panel of 96 queries, the packed queries, and a tile of keys
    assert workspace(256) < 4000 * (96 + 16) * 4 + (2 << 20)
    assert workspace(512) - workspace(256) < 4000 * 256 * 4 / 3
