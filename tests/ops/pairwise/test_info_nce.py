"""InfoNCE against its float64 reference: values, gradients, awkward sizes, special values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.conftest import against_reference, relative_error, values_and_gradients
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.pairwise import cpu, cuda, gpu, gpu_panels

SIZES = [
    (1, 1, 1),
    (1, 5, 3),
    (2, 2, 16),
    (13, 17, 5),
    (48, 96, 33),
    (100, 131, 64),
    (257, 400, 17),
    (391, 1160, 31),
]


def clip_like(rows, keys, features, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, features, generator=generator)
    k = torch.randn(keys, features, generator=generator)
    k[:rows] = k[:rows] + 0.5 * q
    return q.to(dtype), k.to(dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("sizes", SIZES)
def test_info_nce_equals_float64(sizes, reduction, normalize):
    q, k = clip_like(*sizes)
    scale = torch.tensor(7.0 if normalize else 0.7)
    *errors, scale_error = against_reference(
        lambda q, k, s: F.info_nce(q, k, logit_scale=s, normalize=normalize, reduction=reduction), q, k, scale
    )
    assert max(errors) < 5e-6
    assert scale_error < 1e-3  # a sum over rows of both signs: relative to it, rounding is large


def test_scale_gradient_of_each_row():
    q, k = clip_like(50, 80, 16)
    rows = lambda q, k, s: F.info_nce(q, k, logit_scale=s.expand(()), reduction="none")
    scale = torch.tensor(7.0, requires_grad=True)
    wide = torch.tensor(7.0).double().requires_grad_()
    truth = F.info_nce(q.double(), k.double(), logit_scale=wide, reduction="none")
    for i in range(0, 50, 7):
        (got,) = torch.autograd.grad(rows(q, k, scale)[i], scale)
        (expected,) = torch.autograd.grad(truth[i], wide, retain_graph=True)
        assert got.item() == pytest.approx(expected.item(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    extra=st.integers(0, 70),
    features=st.integers(1, 40),
    scale=st.floats(-30, 30).filter(lambda s: abs(s) > 1e-3),
    seed=st.integers(0, 1000),
)
def test_info_nce_any_size_and_scale(rows, extra, features, scale, seed):
    q, k = clip_like(rows, rows + extra, features, seed)
    got, *gradients = values_and_gradients(lambda q, k: F.info_nce(q, k, logit_scale=scale), q, k)
    with ops.use_backend("reference"):
        truth, *true_gradients = values_and_gradients(
            lambda q, k: F.info_nce(q, k, logit_scale=scale), q.double(), k.double()
        )
    torch.testing.assert_close(got.double(), truth, rtol=2e-6, atol=2e-6)
    for x, a, b in zip((q, k), gradients, true_gradients, strict=True):
        norm = x.norm(
            dim=1, keepdim=True
        ).double()  # the gradient grows as it shrinks, and so does its rounding
        torch.testing.assert_close(norm * a, norm * b, rtol=1e-4, atol=5e-6 * max(1.0, abs(scale)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_truth_than_torch(dtype):
    q, k = clip_like(200, 300, 48, dtype=dtype)

    def torch_own(q, k):
        q, k = torch.nn.functional.normalize(q, dim=1), torch.nn.functional.normalize(k, dim=1)
        return torch.nn.functional.cross_entropy(14.0 * q @ k.t(), torch.arange(200))

    truth = values_and_gradients(torch_own, q.double(), k.double())
    plain = values_and_gradients(torch_own, q, k)
    ours = values_and_gradients(lambda q, k: F.info_nce(q, k, logit_scale=14.0), q, k)
    assert ours[0].dtype == torch.float32
    for mine, theirs, exact in zip(ours, plain, truth, strict=True):
        assert relative_error(mine, exact) <= relative_error(theirs, exact) + 1e-3


@pytest.mark.parametrize("scale", [100.0, 1 / 0.01, -20.0, 0.0])
def test_info_nce_saturated(scale):
    q, k = clip_like(60, 90, 24)
    k[:30] = q[:30]  # aligned positives
    k[70:80] = q[3]  # duplicates of one positive
    q[31] = 0.0  # a row without a direction
    function = lambda q, k, s: F.info_nce(q, k, logit_scale=s, reduction="none")
    with ops.use_backend("cpu"):
        got = values_and_gradients(function, q, k, torch.tensor(scale))
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, q.double(), k.double(), torch.tensor(scale).double())
    usable = torch.arange(60) != 31  # the gradient of a zero row is 1/eps large
    got[1], truth[1] = got[1][usable], truth[1][usable]
    assert max(relative_error(a, b) for a, b in zip(got, truth, strict=True)) < 2e-5


@pytest.mark.parametrize("length", [0.0, 1e-13, 5e-13, 2e-12])
def test_rows_about_as_short_as_the_smallest_norm_have_the_gradient_of_torchs_normalize(length):
    q, k = clip_like(20, 30, 9)
    short = [(q, 3), (k, 3), (q, 8), (k, 12), (k, 25)]
    for rows, i in short:
        rows[i] *= length / rows[i].norm()

    def torch_own(q, k):
        q, k = torch.nn.functional.normalize(q, dim=1), torch.nn.functional.normalize(k, dim=1)
        return torch.nn.functional.cross_entropy(7.0 * q @ k.t(), torch.arange(20))

    _, *got = values_and_gradients(lambda q, k: F.info_nce(q, k, logit_scale=7.0), q, k)
    _, *truth = values_and_gradients(torch_own, q.double(), k.double())
    for ours, exact in zip(got, truth, strict=True):
        for a, b in zip(ours, exact, strict=True):  # by row, since those of short rows are 1e12 times larger
            assert relative_error(a, b) < 1e-5


def test_a_dominating_positive_keeps_its_digits():
    q = torch.eye(4)
    loss, dq = values_and_gradients(
        lambda q: F.info_nce(q, torch.eye(4), logit_scale=30.0, normalize=False), q
    )
    truth = math.log1p(3 * math.exp(-30))
    assert loss.item() == pytest.approx(truth, rel=1e-6)
    assert torch.isfinite(dq).all()
    assert dq.abs().max() > 0


@pytest.mark.parametrize("place", ["query", "positive", "negative"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [2.0, 0.0, -1e-35])
def test_info_nce_special_values_come_out_where_torch_has_them(place, value, scale):
    q, k = clip_like(40, 50, 9)
    {"query": q, "positive": k, "negative": k}[place][
        {"query": 3, "positive": 5, "negative": 45}[place], 2
    ] = value
    options = {"logit_scale": scale, "normalize": False, "reduction": "none"}
    inputs = q.requires_grad_(), k.requires_grad_()
    with ops.use_backend("reference"):
        expected = F.info_nce(q, k, **options)
    got = F.info_nce(q, k, **options)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    ones = torch.ones_like(expected)
    truth = torch.autograd.grad(expected, inputs, ones)
    for a, b in zip(torch.autograd.grad(got, inputs, ones), truth, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_info_nce_gradcheck_and_double_backward():
    q, k = (x.double().requires_grad_() for x in clip_like(5, 7, 3))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    function = lambda q, k, s: F.info_nce(q, k, logit_scale=s)
    assert torch.autograd.gradcheck(function, (q, k, scale))
    assert torch.autograd.gradgradcheck(function, (q, k, scale))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_double_backward_of_the_kernel_equals_the_reference(reduction):
    def second(q, k):
        loss = F.info_nce(q, k, logit_scale=5.0, reduction=reduction).square().sum()
        (dq,) = torch.autograd.grad(loss, q, create_graph=True)
        return torch.autograd.grad(dq.square().sum(), (q, k))

    q, k = clip_like(20, 30, 8)
    got = second(q.requires_grad_(), k.requires_grad_())
    with ops.use_backend("reference"):
        truth = second(q.detach().double().requires_grad_(), k.detach().double().requires_grad_())
    assert max(relative_error(a, b) for a, b in zip(got, truth, strict=True)) < 1e-5


def test_only_wanted_gradients_are_computed():
    q, k = clip_like(30, 40, 8)
    loss = F.info_nce(q, k.requires_grad_(), logit_scale=5.0)
    gradients = loss.grad_fn.saved_tensors[-4:]
    assert [x is not None for x in gradients] == [False, True, False, False]


def test_nothing_is_computed_for_backward_without_grad_mode(monkeypatch):
    q, k = (x.requires_grad_() for x in clip_like(8, 8, 4))
    asked = []
    original = cpu.row_softmax
    monkeypatch.setattr(cpu, "row_softmax", lambda *a: (asked.append(a[-5:]), original(*a))[1])
    with torch.no_grad():
        F.info_nce(q, k)
    assert asked == [(False,) * 5]


def test_backward_twice_gives_the_same():
    q, k = clip_like(30, 40, 8)
    q.requires_grad_()
    loss = F.info_nce(q, k, logit_scale=5.0)
    first = torch.autograd.grad(loss, q, retain_graph=True)[0].clone()
    loss.backward()
    torch.testing.assert_close(q.grad, first, rtol=0, atol=0)


def test_non_contiguous_and_expanded_inputs():
    wide = torch.randn(64, 40)
    q, k = wide[::2, ::2], wide.t()[:20].t()[32:]
    torch.testing.assert_close(F.info_nce(q, k), F.info_nce(q.contiguous(), k.contiguous()))
    torch.testing.assert_close(F.info_nce(q[:1].expand(6, -1), k[:6]), F.info_nce(q[:1].repeat(6, 1), k[:6]))


def test_row_order_does_not_matter():
    q, k = clip_like(100, 100, 16)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(F.info_nce(q, k), F.info_nce(q[order], k[order]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_follows_torch(threads):
    q, k = clip_like(500, 900, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        errors = against_reference(lambda q, k: F.info_nce(q, k), q, k)
    finally:
        torch.set_num_threads(before)
    assert max(errors) < 5e-6


def test_extra_memory_is_a_sliver_of_the_matrix():
    q, k = clip_like(2048, 2048, 64)
    q.requires_grad_()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        F.info_nce(q, k).backward()
    allocated = sum(
        max(e.self_device_memory_usage, e.self_cpu_memory_usage, 0) for e in profile.key_averages()
    )
    assert allocated < 2048 * 2048 * 4 / 2


@pytest.mark.parametrize("need", [[True] * 5, [False, True, False, False, False], [False] * 5])
def test_row_softmax_operator_is_well_formed(need):
    q, k = clip_like(9, 12, 5)
    scale = torch.tensor(3.0)
    op = torch.ops.thawkit.row_softmax.default
    plain = q, k, scale, None, None, None, None, None, 1.0, True, 0, -1, 0, math.inf
    torch.library.opcheck(op, (*plain, [*need[:3], False, need[4]], "cpu", "auto"))
    labels = torch.arange(9, dtype=torch.int32), torch.arange(12, dtype=torch.int32)
    full = q, k, scale, torch.arange(9), torch.rand(12), *labels, torch.rand(9), 1.0, False, 0, 0, 1, 0.5
    torch.library.opcheck(op, (*full, need, "cpu", "auto"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_info_nce_compiles_without_graph_breaks(backend):
    step = lambda q, k, s: F.info_nce(q * 2, k, logit_scale=s) + 1
    inputs = [x.requires_grad_() for x in (*clip_like(20, 30, 8), torch.tensor(4.0))]
    expected = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend=backend)(*inputs), inputs)
    torch.testing.assert_close(got, expected)


def plain_softmax(panel, loss, *, dscale, **options):
    rows = torch.arange(len(loss))
    logits = panel.scale * panel.scores
    loss.copy_(logits.logsumexp(1) - logits[rows, panel.first + rows])
    slopes = logits.softmax(1)
    slopes[rows, panel.first + rows] -= 1
    slopes *= panel.factor * panel.row_weight[:, None]
    dscale.copy_((slopes * panel.scores).sum(1))
    panel.slopes.copy_(slopes)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("panel_rows", "scale"), [(1, 3.0), (7, 3.0), (100, 3.0), (7, 0.0)])
def test_panel_driver_of_the_gpu_with_a_plain_epilogue(panel_rows, scale, normalize, monkeypatch):
    monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 4 * 31 * panel_rows)
    q, k = clip_like(23, 31, 6)
    q[3] *= 5e-13 / q[3].norm()  # below the norm that normalization divides by at least
    weights = torch.rand(23)
    arguments = (
        q, k, torch.tensor(scale), None, None, None, None, weights, 1.0, normalize, 0, -1, 0, math.inf,
        True, True, True, False, False,
    )  # fmt: skip
    unused = cuda.column_sums, cuda.clip, cuda.sigmoid
    loss, total, _, _, *gradients, _ = gpu.row_softmax(gpu.Epilogues(plain_softmax, *unused), *arguments)
    got = loss, total, *gradients
    loss, total, _, _, *gradients, _ = cpu.row_softmax(*arguments)
    for a, b in zip(got, (loss, total, *gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("q", "k", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(3, 2), {}, "q must have shape"),
        (torch.zeros(3, 2), torch.zeros(3, 4), {}, "number of features"),
        (torch.zeros(3, 2), torch.zeros(2, 2), {}, "k must have at least as many rows"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), {}, "same dtype"),
        (torch.zeros(3, 2).int(), torch.zeros(3, 2).int(), {}, "q must be float32"),
        (torch.zeros(0, 2), torch.zeros(3, 2), {}, "q has no rows"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"logit_scale": math.inf}, "logit_scale must be finite"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"logit_scale": "a"}, "logit_scale must be a number, got str"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            {"logit_scale": torch.ones(2)},
            "logit_scale must have one element",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_info_nce_bad_input(q, k, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.info_nce(q, k, **options)


def test_no_rows_sum_to_nothing():
    q = torch.zeros(0, 4, requires_grad=True)
    k = torch.randn(3, 4, requires_grad=True)
    loss = F.info_nce(q, k, reduction="sum")
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert loss.item() == 0
    assert dq.shape == (0, 4)
    assert not dk.any()


def test_negatives_beyond_the_margin_do_not_make_the_others_vanish():
    """At this scale the powers of the others, relative to such a negative's, are 0 in float32."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(20, 8, generator=generator)
    k = torch.cat((torch.randn(20, 8, generator=generator), q))  # each query is a negative of its own
    errors = against_reference(
        lambda q, k: F.info_nce(q, k, logit_scale=300.0, false_negative_margin=0.05, reduction="none"), q, k
    )
    assert max(errors) < 2e-5
