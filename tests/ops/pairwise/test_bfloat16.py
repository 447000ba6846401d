"""The pairwise losses on bfloat16 operands: no further from float64 than torch's own bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tests.ops.conftest import relative_error, values_and_gradients
from tests.ops.pairwise.test_info_nce import SIZES, clip_like
from tests.ops.pairwise.test_row_softmax import problem, run
from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import cpu, reference
from thawkit.ops.pairwise.row_softmax import LABELS, Columns

ROUNDING = 2.0**-8  # of bfloat16, from one number to the next, relative

needs_bfloat16 = pytest.mark.skipif(
    cpu.kernel_dtypes(torch.bfloat16)[1] != torch.bfloat16, reason="these kernels multiply no bfloat16"
)


@pytest.fixture
def medium_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def torch_own(scale, normalize, rows):
    def loss(q, k):
        if normalize:
            q, k = functional.normalize(q, dim=1), functional.normalize(k, dim=1)
        return functional.cross_entropy(scale * q @ k.t(), torch.arange(rows))

    return loss


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [*SIZES, (97, 1201, 1), (193, 385, 127), (700, 801, 130)])
def test_no_further_from_the_truth_than_torch(sizes, normalize):
    q, k = clip_like(*sizes, dtype=torch.bfloat16)
    scale = 14.0 if normalize else 0.7
    own = torch_own(scale, normalize, sizes[0])
    truth = values_and_gradients(own, q.double(), k.double())
    theirs = values_and_gradients(own, q, k)
    ours = values_and_gradients(lambda q, k: F.info_nce(q, k, logit_scale=scale, normalize=normalize), q, k)
    assert [x.dtype for x in ours] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert relative_error(ours[0], truth[0]) < 5e-6  # the scores are not rounded
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        if exact.abs().max() > 1e-6:  # one key: no gradient but what rounding makes
            assert relative_error(mine, exact) <= relative_error(other, exact) + ROUNDING


def own_pair_loss(kind, scale, normalize):
    """The definition, in the arithmetic of its inputs."""
    scale, bias = torch.tensor(scale), torch.tensor(-3.0)
    if kind == "siglip":
        return lambda x, y: reference.siglip(x, y, scale, bias, normalize).mean()
    if kind == "clip":
        return lambda x, y: reference.clip(x, y, scale, normalize).mean()
    return lambda x, y: reference.nt_xent(x, y, 1 / scale, normalize).mean()


def our_pair_loss(kind, scale, normalize):
    if kind == "siglip":
        return lambda x, y: F.siglip(x, y, logit_scale=scale, logit_bias=-3.0, normalize=normalize)
    if kind == "clip":
        return lambda x, y: F.clip(x, y, logit_scale=scale, normalize=normalize)
    return lambda x, y: F.nt_xent(x, y, temperature=1 / scale, normalize=normalize)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["clip", "siglip", "nt_xent"])
@pytest.mark.parametrize("sizes", [(2, 2, 3), (13, 13, 5), (97, 97, 64), (391, 391, 33), (500, 500, 127)])
def test_losses_of_all_pairs_are_no_further_from_the_truth_than_torch(kind, sizes, normalize):
    x, y = clip_like(*sizes, dtype=torch.bfloat16)
    scale = 8.0 if normalize else 0.5
    own, loss = (make(kind, scale, normalize) for make in (own_pair_loss, our_pair_loss))
    truth, theirs = values_and_gradients(own, x.double(), y.double()), values_and_gradients(own, x, y)
    ours = values_and_gradients(loss, x, y)
    assert [t.dtype for t in ours] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert relative_error(ours[0], truth[0]) < 5e-6
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        assert relative_error(mine, exact) <= relative_error(other, exact) + ROUNDING


@pytest.mark.parametrize("length", [1e-11, 1e17])
def test_short_and_long_rows(length):
    q, k = ((length * x).bfloat16() for x in clip_like(20, 30, 9))
    with torch.no_grad():
        got = F.info_nce(q, k, logit_scale=7.0)
        truth = torch_own(7.0, True, 20)(q.double(), k.double())
    assert relative_error(got, truth) < 5e-6


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("reduce", [True, False])
def test_all_that_the_kernel_takes(labels, reduce):
    tensors = problem(131, 405, 23, seed=3)
    for name in ("q", "k"):
        tensors[name] = tensors[name].bfloat16()
    tensors["target"][::5] = -1
    del tensors["bias"]  # a margin is one of similarities
    options = {"columns": Columns(labels=labels, margin=0.3), "reduce": reduce}
    got = run(tensors, "cpu", **options)
    truth = run(tensors, "reference", **options)
    for mine, exact in zip(got, truth, strict=True):
        assert torch.equal(mine.isnan(), exact.isnan())
        usable = exact.isfinite()
        assert relative_error(mine[usable], exact[usable]) < 2 * ROUNDING


@pytest.mark.parametrize("place", [(0, 3), (1, 5), (1, 45)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_come_out_where_torch_has_them(place, value):
    inputs = clip_like(41, 50, 9, dtype=torch.bfloat16)
    inputs[place[0]][place[1], 2] = value
    options = {"logit_scale": 2.0, "normalize": False, "reduction": "none"}
    for x in inputs:
        x.requires_grad_()
    with ops.use_backend("reference"):
        expected = F.info_nce(*inputs, **options)
    got = F.info_nce(*inputs, **options)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    ones = torch.ones_like(expected)
    truth = torch.autograd.grad(expected, inputs, ones)
    for a, b in zip(torch.autograd.grad(got, inputs, ones), truth, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=2 * ROUNDING, atol=2 * ROUNDING)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_changes_rounding_only(threads):
    q, k = clip_like(501, 903, 65, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = values_and_gradients(lambda q, k: F.info_nce(q, k), q, k)
    finally:
        torch.set_num_threads(before)
    with ops.use_backend("reference"):
        truth = values_and_gradients(lambda q, k: F.info_nce(q, k), q.double(), k.double())
    assert max(relative_error(a, b) for a, b in zip(got, truth, strict=True)) < 2 * ROUNDING


def test_no_rows_sum_to_nothing():
    q = torch.zeros(0, 4, dtype=torch.bfloat16, requires_grad=True)
    k = torch.randn(3, 4).bfloat16().requires_grad_()
    loss = F.info_nce(q, k, reduction="sum")
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert (loss.item(), dq.shape, dq.dtype) == (0, (0, 4), torch.bfloat16)
    assert not dk.any()


@needs_bfloat16
def test_bfloat16_needs_less_memory_than_float32():
    def allocated(dtype):
        q, k = clip_like(1024, 1024, 256, dtype=dtype)
        q.requires_grad_()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(profile_memory=True, activities=activities) as profile:
            F.info_nce(q, k, normalize=False).backward()
        return sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())

    assert allocated(torch.bfloat16) < 0.85 * allocated(torch.float32)


@needs_bfloat16
def test_medium_precision_multiplies_bfloat16(medium_precision):
    q, k = clip_like(200, 300, 48)
    own = torch_own(14.0, True, 200)
    truth = values_and_gradients(own, q.double(), k.double())
    ours = values_and_gradients(lambda q, k: F.info_nce(q, k, logit_scale=14.0), q, k)
    theirs = values_and_gradients(own, q.bfloat16(), k.bfloat16())
    assert [x.dtype for x in ours] == [torch.float32] * 3
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        assert relative_error(mine, exact) <= relative_error(other, exact) + ROUNDING
    assert relative_error(ours[2], truth[2]) > 1e-4


@needs_bfloat16
def test_what_is_multiplied(medium_precision):
    assert cpu.kernel_dtypes(torch.float32) == (torch.float32, torch.bfloat16)
    assert cpu.kernel_dtypes(torch.bfloat16) == (torch.bfloat16, torch.bfloat16)
    assert cpu.kernel_dtypes(torch.float16) == (torch.float32, torch.float32)
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        assert cpu.kernel_dtypes(torch.float32) == (torch.float32, torch.float32)
        assert cpu.kernel_dtypes(torch.bfloat16) == (torch.bfloat16, torch.bfloat16)
