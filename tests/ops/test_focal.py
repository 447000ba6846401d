"""Sigmoid focal loss against float64 and torchvision: values, gradients, saturation, special values."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from tests.ops.conftest import relative_error, values_and_gradients
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import FocalLoss, SigmoidFocalLoss
from thawkit.losses import functional as F
from thawkit.ops.focal.sigmoid_operators import Options
from thawkit.ops.focal.weights import BLOCK, pack, weights

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.7]


def logits_and_targets(shape, seed=0, soft=False, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * spread
    t = torch.rand(shape, generator=generator)
    return x, t if soft else (t < 0.3).float()


def truth_of(x, t, **options):
    with ops.use_backend("reference"):
        return values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t.double(), **options), x.double())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", [0.25, -1.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 7), (1031,), (70, 1000)])
def test_equals_float64(shape, gamma, reduction, alpha, soft):
    x, t = logits_and_targets(shape, soft=soft)
    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    got = values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t, **options), x)
    assert max(relative_error(a, b) for a, b in zip(got, truth_of(x, t, **options), strict=True)) < 2e-6


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("place", [0, 511, 512, 1023, 1029])
@pytest.mark.parametrize(("logit", "target"), [(0.5, 0.25), (2.0, 1.5), (math.inf, 1.0), (math.nan, 0.0)])
def test_one_unusual_element_among_many_usual_ones(logit, target, place, reduction):
    x, t = logits_and_targets((1030,))
    x[place], t[place] = logit, target
    loss, gradient = values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t, reduction=reduction), x)
    true_loss, true_gradient = truth_of(x, t, reduction=reduction)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-5, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_subnormal_targets_where_the_processor_flushes_them():
    x, t = torch.tensor([1.0, -2.0, 3.0, 0.5] * 5), torch.full((20,), 6e-39)
    expected = F.sigmoid_focal_loss(x, torch.zeros(20))
    torch.set_flush_denormal(True)
    try:
        got = F.sigmoid_focal_loss(x, t)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(got, expected)


def test_a_high_power_of_a_small_miss_is_zero():
    got = F.sigmoid_focal_loss(torch.full((8,), 3e38), torch.full((8,), 0.9), alpha=-1, gamma=50.0)
    assert got.max() < 1e-6


def test_equals_torchvision_call_for_call():
    x, t = logits_and_targets((8, 90))
    for options in (
        {},
        {"alpha": 0.6, "gamma": 1.5},
        {"reduction": "mean"},
        {"reduction": "sum", "alpha": -1},
    ):
        torch.testing.assert_close(F.sigmoid_focal_loss(x, t, **options), sigmoid_focal_loss(x, t, **options))


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(-100, 100, width=32),
    t=st.floats(0, 1, width=32),
    gamma=st.floats(0, 5),
    alpha=st.floats(0, 1, width=32),  # kernels take it so: 1 - alpha has the digits of float32's
)
def test_one_logit_of_any_size(x, t, gamma, alpha):
    x, t = torch.tensor([x]), torch.tensor([t])
    options = {"alpha": alpha, "gamma": gamma}
    got = values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t, **options), x)
    # The formula itself loses digits in float64 where 1 - p_t cancels, so compare in one more form.
    p, q = torch.sigmoid(x.double()), torch.sigmoid(-x.double())
    miss = p * (1 - t) + q * t
    ce = torch.nn.functional.softplus(-x.double().abs()) + x.double().clamp_min(0) - x.double() * t
    expected = (alpha * t + (1 - alpha) * (1 - t)) * miss**gamma * ce
    torch.testing.assert_close(got[0].double(), expected.double(), rtol=1e-4, atol=1e-7)
    assert torch.isfinite(got[1]).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_saturated_logits_have_finite_gradients(gamma):
    x = torch.tensor([-100.0, -40.0, 40.0, 100.0]).repeat(5).requires_grad_()
    t = torch.tensor([0.0, 1.0]).repeat(10)
    F.sigmoid_focal_loss(x, t, gamma=gamma, reduction="sum").backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_half_precision_is_no_further_from_the_truth_than_torch(dtype, reduction):
    x, t = logits_and_targets((37, 50))
    x = x.to(dtype)
    truth = truth_of(x, t, reduction=reduction)
    plain = values_and_gradients(lambda x: sigmoid_focal_loss(x, t.to(dtype), reduction=reduction), x)
    ours = values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t, reduction=reduction), x)
    assert ours[1].dtype == dtype
    for mine, theirs, exact in zip(ours, plain, truth, strict=True):
        assert relative_error(mine, exact) <= relative_error(theirs, exact) + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("position", [0, 5, 36])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_come_out_where_torch_has_them(value, target, position):
    x, t = logits_and_targets((37,))
    x[position], t[position] = value, target
    got = values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t), x)
    expected = values_and_gradients(lambda x: sigmoid_focal_loss(x, t), x)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_in_float64_are_those_of_float32(value, target, gamma):
    x, t = torch.full((3,), value), torch.full((3,), target)
    function = lambda x: F.sigmoid_focal_loss(x, t.to(x.dtype), gamma=gamma)
    got, expected = values_and_gradients(function, x.double()), values_and_gradients(function, x)
    torch.testing.assert_close([v.float() for v in got], list(expected), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_nan_is_not_rounded_to_a_number(dtype):
    # Rounding up carries out of the mantissa where all its bits are set. No half-precision input has those of
    # float32; the factor of the sum can bring them.
    (nan,) = struct.unpack("d", struct.pack("Q", 0x7FFF_FFFF_FFFF_FFFF))
    x, t = (part.to(dtype) for part in logits_and_targets((37,)))
    _, gradient = torch.ops.thawkit.sigmoid_focal_total(x, t, *plain_options(), nan, None, True)
    assert gradient.isnan().all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck_and_double_backward(reduction):
    x, t = logits_and_targets((3, 4), spread=1.0)
    x = x.double().requires_grad_()
    function = lambda x: F.sigmoid_focal_loss(x, t.double(), gamma=1.5, reduction=reduction)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))

    def second(x):
        loss = F.sigmoid_focal_loss(x, t.to(x.dtype), reduction=reduction).square().sum()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    assert relative_error(second(x.detach().float().requires_grad_()), second(x)) < 1e-5


def test_targets_may_need_a_gradient():
    x, t = logits_and_targets((5,), soft=True)
    t.requires_grad_()
    F.sigmoid_focal_loss(x, t, reduction="sum").backward()
    assert t.grad.abs().min() > 0


def test_integer_targets_and_other_layouts():
    x, t = logits_and_targets((6, 10))
    expected = F.sigmoid_focal_loss(x, t)
    torch.testing.assert_close(F.sigmoid_focal_loss(x, t.long()), expected)
    torch.testing.assert_close(F.sigmoid_focal_loss(x.t(), t.t()), expected.t())
    y = x.t().requires_grad_()
    (dy,) = torch.autograd.grad(F.sigmoid_focal_loss(y, t.t(), reduction="mean"), y)
    z = x.clone().requires_grad_()
    (dz,) = torch.autograd.grad(F.sigmoid_focal_loss(z, t, reduction="mean"), z)
    torch.testing.assert_close(dy.t(), dz)


def test_empty_input():
    x = torch.zeros(0, 3, requires_grad=True)
    assert F.sigmoid_focal_loss(x, torch.zeros(0, 3)).shape == (0, 3)
    assert F.sigmoid_focal_loss(x, torch.zeros(0, 3), reduction="sum").item() == 0


def test_extra_memory_is_one_gradient():
    x, t = logits_and_targets((1 << 18,))
    x.requires_grad_()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        F.sigmoid_focal_loss(x, t, reduction="mean")
    allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
    assert x.nbytes <= allocated <= x.nbytes + 4096


def test_the_kernel_reads_blocks_of_the_size_that_weights_are_packed_for():
    from thawkit import _C

    assert _C.focal_block == BLOCK


def plain_options():
    return Options(None, None, None, 0.25, 0.75, 2.0, 1, 1, None, 0.0, False, "cpu")


def test_operators_are_well_formed():
    x, t = logits_and_targets((4, 9))
    namespace = torch.ops.thawkit
    packed = pack(x, weights(x, torch.rand(9), "balanced", torch.rand(9), torch.rand(4, 1)))
    mask = torch.rand(4, 9) < 0.5
    numbers = (1.0, 1.0, 1.5, packed.period, packed.row, -1.0, 0.1, False, "cpu")
    special = Options(packed.classes, mask, packed.row_weight, *numbers)
    for options in (plain_options(), special):
        torch.library.opcheck(namespace.sigmoid_focal.default, (x, t, *options))
        for need_gradient in (False, True):
            more = (0.1, torch.tensor(3.0), need_gradient)
            torch.library.opcheck(namespace.sigmoid_focal_total.default, (x, t, *options, *more))
        torch.library.opcheck(namespace.sigmoid_focal_backward.default, (torch.rand_like(x), x, t, *options))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_without_graph_breaks(reduction):
    x, t = logits_and_targets((4, 9))
    x.requires_grad_()
    step = lambda x: F.sigmoid_focal_loss(x * 2, t, reduction=reduction).sum()
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(step(x), x)[0])


@pytest.mark.parametrize(
    ("x", "t", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(4), {}, "targets must have the shape of inputs"),
        (torch.zeros(3).long(), torch.zeros(3), {}, "inputs must be float32"),
        (torch.zeros(3), [0, 1, 0], {}, "targets must be a tensor, got list"),
        (torch.zeros(3), torch.zeros(3), {"gamma": -1}, "gamma must be at least 0"),
        (torch.zeros(3), torch.zeros(3), {"alpha": 2.0}, "alpha must be in"),
        (torch.zeros(3), torch.zeros(3), {"alpha": math.nan}, "alpha must be finite"),
        (torch.zeros(0), torch.zeros(0), {"reduction": "mean"}, "inputs has no rows"),
    ],
)
def test_bad_input(x, t, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.sigmoid_focal_loss(x, t, **options)


# ---- the softmax form


def test_softmax_form_is_cross_entropy_at_gamma_zero():
    logits, target = torch.randn(6, 5, 2), torch.randint(0, 5, (6, 2))
    torch.testing.assert_close(
        F.focal_loss(logits, target, gamma=0.0), torch.nn.functional.cross_entropy(logits, target)
    )


def test_softmax_form_by_its_definition():
    logits, target, alpha = torch.randn(6, 5), torch.randint(0, 5, (6,)), torch.rand(5)
    p = logits.softmax(1)[torch.arange(6), target]
    expected = (alpha[target] * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(FocalLoss(gamma=2.0, alpha=alpha)(logits, target), expected)


def test_softmax_form_saturated_below_gamma_one():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    F.focal_loss(logits, torch.tensor([0, 0]), gamma=0.5).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (torch.tensor([0, 5]), {}, "class indices 0 to 2 or ignore_index=-100, got 5"),
        (torch.tensor([0, 1, 2]), {}, "target must have the shape of logits"),
        (
            torch.tensor([0.0, 1.0]),
            {},
            r"target must be a tensor of int64 class indices or .*got torch.float32 of shape \(2,\)",
        ),
        (torch.tensor([0, 1], dtype=torch.int32), {}, "target must be a tensor of int64 .*got torch.int32"),
        ([0, 1], {}, "target must be a tensor of int64 class indices or of probabilities, got list"),
        (torch.tensor([0, 1]), {"alpha": torch.ones(2)}, r"alpha must have shape \(3,\)"),
        (
            torch.tensor([0, 1]),
            {"alpha": [0.2, 0.3, 0.5]},
            "alpha must be a tensor of 3 class weights, got list",
        ),
        (torch.tensor([0, 1]), {"gamma": -0.5}, "gamma must be at least 0"),
    ],
)
def test_softmax_form_bad_input(target, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.focal_loss(torch.zeros(2, 3), target, **options)


def test_modules_call_the_functions():
    x, t = logits_and_targets((4, 3))
    torch.testing.assert_close(
        SigmoidFocalLoss(alpha=0.5, gamma=1.0, reduction="sum")(x, t),
        F.sigmoid_focal_loss(x, t, 0.5, 1.0, "sum"),
    )
