"""The focal losses' options against formulas of their own in float64: weights, masks, divisors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import FocalLoss, SigmoidFocalLoss
from thawkit.losses import functional as F

SHAPES = [(1,), (7,), (6, 5), (40, 33), (3, 4, 5, 2), (30, 700)]


def batch(shape, soft=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    t = torch.rand(shape, generator=generator)
    return x, t if soft else (t < 0.3).float()


def sigmoid_form(x, t, positive=0.25, negative=0.75, gamma=2.0, pos_weight=1.0):
    """Elementwise, from softplus alone."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    ce = pos_weight * t * nn.functional.softplus(-x) + (1 - t) * nn.functional.softplus(x)
    return (positive * t + negative * (1 - t)) * (p * (1 - t) + q * t) ** gamma * ce


def reduced(rows, reduction):
    return rows if reduction == "none" else getattr(rows, reduction)()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_weights_and_pos_weight(shape, gamma, soft):
    x, t = batch(shape, soft)
    classes = shape[-1]
    alpha = torch.linspace(0.1, 0.9, classes)
    pos_weight = torch.linspace(0.5, 3.0, classes)
    cases = [
        ({"alpha": alpha, "pos_weight": pos_weight}, lambda a, w: (a, 1 - a, w)),
        ({"alpha": alpha, "alpha_mode": "positive"}, lambda a, w: (a, 1.0, 1.0)),
        ({"alpha": alpha, "alpha_mode": "per_class"}, lambda a, w: (a, a, 1.0)),
        ({"alpha": 0.6, "pos_weight": pos_weight}, lambda a, w: (0.6, 0.4, w)),
        ({"alpha": 1.5, "alpha_mode": "positive", "pos_weight": 2.0}, lambda a, w: (1.5, 1.0, 2.0)),
        ({"alpha": None, "pos_weight": pos_weight}, lambda a, w: (1.0, 1.0, w)),
        ({"alpha": -1, "pos_weight": torch.tensor(2.5)}, lambda a, w: (1.0, 1.0, 2.5)),
    ]
    for options, weights in cases:
        for reduction in ("none", "mean"):
            oracle.assert_is(
                lambda x, o=options, r=reduction: F.sigmoid_focal_loss(
                    x, t, gamma=gamma, reduction=r, **in_dtype(o, x)
                ),
                lambda x, w=weights, r=reduction: reduced(
                    sigmoid_form(x, t.double(), *w(alpha.double(), pos_weight.double())[:2], gamma,
                                 w(alpha.double(), pos_weight.double())[2]), r
                ),
                x,
                rtol=1e-5,
                atol=1e-6,
            )  # fmt: skip


def in_dtype(options, x):
    return {n: o.to(x.dtype) if isinstance(o, torch.Tensor) else o for n, o in options.items()}


def test_weights_of_a_dimension_in_the_middle():
    x, t = batch((3, 4, 5, 2))
    w = torch.linspace(0.5, 2, 4).reshape(4, 1, 1)
    oracle.assert_is(
        lambda x: F.sigmoid_focal_loss(x, t, pos_weight=w.to(x.dtype)),
        lambda x: sigmoid_form(x, t.double(), pos_weight=w.double()),
        x,
    )


def test_an_alpha_near_one_leaves_negatives_their_weight():
    x, t = batch((50,), soft=False)
    for alpha in (0.99999, 1 - 1e-7, 1.0):
        got = F.sigmoid_focal_loss(x, t, alpha=alpha).double()
        expected = sigmoid_form(x.double(), t.double(), alpha, 1 - alpha)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-12)


def test_elements_of_alpha_mean_what_numbers_do():
    x, t = batch((6, 5))
    for mode in ("balanced", "positive"):
        options = {"alpha_mode": mode, "reduction": "sum"}
        for number in (-1.0, 0.0, 0.3, 1.0):
            expected = oracle.values_and_gradients(
                lambda x, a=number, o=options: F.sigmoid_focal_loss(x, t, a, **o), x
            )
            for given in (torch.tensor(number), torch.tensor([number]), torch.full((5,), number)):
                got = oracle.values_and_gradients(
                    lambda x, a=given, o=options: F.sigmoid_focal_loss(x, t, a, **o), x
                )
                torch.testing.assert_close(got, expected)
        mixed = torch.tensor([-1.0, 0.3, 0.3, 0.3, 0.3])
        rows = F.sigmoid_focal_loss(x, t, mixed, alpha_mode=mode)
        torch.testing.assert_close(rows[:, 0], F.sigmoid_focal_loss(x, t, None)[:, 0])
        torch.testing.assert_close(rows[:, 1:], F.sigmoid_focal_loss(x, t, 0.3, alpha_mode=mode)[:, 1:])
    function = lambda x: F.sigmoid_focal_loss(x, t, mixed, reduction="mean")
    oracle.assert_compiles(function, x)


def test_one_minus_an_alpha_of_fewer_digits():
    x, t = batch((6, 5), soft=False)
    for dtype, alpha, rtol in (
        (torch.float32, torch.tensor([0.1]).bfloat16(), 1e-6),
        (torch.float32, torch.tensor([0.1]).half(), 1e-6),
        (torch.float64, torch.tensor([0.1]), 1e-12),
    ):
        got = F.sigmoid_focal_loss(x.to(dtype), t.to(dtype), alpha)
        expected = sigmoid_form(x.double(), t.double(), float(alpha), 1 - float(alpha))
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (6, 5), (40, 33), (30, 700)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_masked_and_ignored_elements_cost_nothing_whatever_stands_there(shape, reduction):
    x, t = batch(shape, soft=False)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    junk = x.masked_fill(~mask, math.nan)

    def expected(x):
        rows = sigmoid_form(x, t.double())
        rows = torch.where(mask, rows, 0)
        return rows.sum() / mask.sum() if reduction == "mean" else reduced(rows, reduction)

    truth = oracle.values_and_gradients(expected, x.double())
    for ignored in (-1, 255):
        for inputs, function in (
            (junk, lambda x: F.sigmoid_focal_loss(x, t, mask=mask, reduction=reduction)),
            (
                junk,
                lambda x, i=ignored: F.sigmoid_focal_loss(
                    x, t.masked_fill(~mask, i), ignore_index=i, reduction=reduction
                ),
            ),
        ):
            for backend in ("cpu", "reference"):
                with ops.use_backend(backend):
                    got = oracle.values_and_gradients(function, inputs)
                for a, b in zip(got, truth, strict=True):
                    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


def test_a_mask_is_broadcast():
    x, t = batch((6, 5))
    rows = torch.tensor([True, False, True, True, False, True]).unsqueeze(1)
    got = F.sigmoid_focal_loss(x, t, mask=rows, reduction="mean")
    torch.testing.assert_close(got, F.sigmoid_focal_loss(x, t)[rows.squeeze(1)].mean())


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
    ],
)
def test_targets_keep_their_digits(logits, targets, reduction):
    x = torch.linspace(-8, 8, 90).to(logits)
    t = torch.tensor([0.999, 1e-3, 1 - 1e-6]).repeat(30).to(targets)
    wide = torch.promote_types(logits, targets)
    alpha, pos_weight = torch.tensor([0.25]), torch.tensor([1.5])
    cases = [
        (lambda x: F.binary_cross_entropy_with_logits(x, t, reduction=reduction), (1.0, 1.0, 0.0)),
        (lambda x: F.sigmoid_focal_loss(x, t, reduction=reduction), (0.25, 0.75)),
        (
            lambda x: F.sigmoid_focal_loss(x, t, alpha, reduction=reduction, pos_weight=pos_weight),
            (0.25, 0.75, 2.0, 1.5),
        ),
    ]
    for function, weights in cases:
        truth = oracle.values_and_gradients(
            lambda x, w=weights: reduced(sigmoid_form(x, t.double(), *w), reduction), x.double()
        )
        got = oracle.values_and_gradients(function, x)
        assert got[0].dtype == wide
        assert got[1].dtype == logits
        torch.testing.assert_close(got[0].double(), truth[0], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(got[1].double(), truth[1], rtol=1e-5 + torch.finfo(logits).eps, atol=1e-7)


@pytest.mark.parametrize("logits", [torch.bfloat16, torch.float16])
def test_integers_and_halves_leave_logits_half(logits):
    x, t = batch((6, 5), soft=False)
    x = x.to(logits)
    expected = F.sigmoid_focal_loss(x.float(), t).to(logits)
    for given in (t.bool(), t.long(), t.byte(), t.to(logits)):
        got = F.sigmoid_focal_loss(x, given)
        assert got.dtype == logits
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ignored", [257, 2049, 70000, -16777217])
def test_an_ignored_number_that_logits_would_round(dtype, ignored):
    x, t = torch.tensor([1.0, -2.0, math.nan]).to(dtype), torch.tensor([0, 1, ignored])
    for given in (t, t.double(), t.float()):
        rows = F.sigmoid_focal_loss(x, given, ignore_index=ignored)
        torch.testing.assert_close(rows[:2], F.sigmoid_focal_loss(x[:2], given[:2]))
        assert rows[2] == 0
        for normalizer, by in (("valid", 2), ("positives", 1)):
            total = F.sigmoid_focal_loss(
                x, given, ignore_index=ignored, normalizer=normalizer, reduction="sum"
            )
            torch.testing.assert_close(total.float(), rows.float().sum() / by, rtol=1e-2, atol=0)
    classes = F.sigmoid_focal_loss(x[:2].expand(3, 2), t, ignore_index=ignored)
    assert not classes[2].any()
    assert classes[:2].all()


@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (700, 3), (40, 33), (3, 4, 7), (3, 700)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_class_indices_are_their_one_hot_targets(shape, reduction):
    x, _ = batch(shape)
    classes = shape[-1]
    t = torch.randint(-1, classes + 1, shape[:-1], generator=torch.Generator().manual_seed(2))
    known = (t >= 0) & (t < classes)
    hot = nn.functional.one_hot(t.where(known, 0), classes) * known.unsqueeze(-1)
    for options in ({}, {"alpha": torch.linspace(0.1, 0.9, classes)}, {"normalizer": "positives"}):
        got = oracle.values_and_gradients(
            lambda x, o=options: F.sigmoid_focal_loss(x, t, reduction=reduction, **o), x
        )
        expected = oracle.values_and_gradients(
            lambda x, o=options: F.sigmoid_focal_loss(x, hot, reduction=reduction, **o), x
        )
        torch.testing.assert_close(got, expected)
    ignoring = F.sigmoid_focal_loss(x, t, ignore_index=0, reduction=reduction)
    mask = (t != 0).unsqueeze(-1).expand(shape)
    torch.testing.assert_close(ignoring, F.sigmoid_focal_loss(x, hot, mask=mask, reduction=reduction))
    with ops.use_backend("reference"):
        torch.testing.assert_close(
            ignoring, F.sigmoid_focal_loss(x, t, ignore_index=0, reduction=reduction), rtol=1e-5, atol=1e-6
        )


def test_what_a_reduction_divides_by_sigmoid():
    x, t = batch((6, 5), soft=False)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    rows = F.sigmoid_focal_loss(x, t, mask=mask)
    valid, positives = mask.sum(), (t * mask).sum()
    number = torch.tensor([7.0])
    divisors = {"numel": 30, "valid": valid, "positives": positives, 3.5: 3.5, number: 7}
    for normalizer, by in divisors.items():
        for reduction in ("none", "mean", "sum"):
            got = F.sigmoid_focal_loss(x, t, mask=mask, reduction=reduction, normalizer=normalizer)
            expected = rows if reduction == "none" else rows.sum()
            torch.testing.assert_close(got, expected / by)
    torch.testing.assert_close(F.sigmoid_focal_loss(x, t, mask=mask, reduction="mean"), rows.sum() / valid)
    for reduction in ("none", "sum"):
        got = F.sigmoid_focal_loss(x, t, mask=mask, reduction=reduction)
        for normalizer in (None, "none"):
            same = F.sigmoid_focal_loss(x, t, mask=mask, reduction=reduction, normalizer=normalizer)
            assert torch.equal(got, same)
    with pytest.raises(ThawkitError, match="normalizer must say what reduction='mean' divides by"):
        F.sigmoid_focal_loss(x, t, reduction="mean", normalizer="none")


@pytest.mark.parametrize("ignored", [0, 3, -1])
def test_ignored_class_indices_are_no_positives(ignored):
    x, t = batch((6, 5))[0], torch.tensor([0, 3, -1, 3, 4, 0])
    positives = sum(0 <= y != ignored for y in t.tolist())
    rows = F.sigmoid_focal_loss(x, t, ignore_index=ignored)
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            got = F.sigmoid_focal_loss(x, t, ignore_index=ignored, normalizer="positives", reduction="mean")
        torch.testing.assert_close(got, rows.sum() / positives)


def test_what_a_reduction_divides_by_softmax():
    x = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0))
    t = torch.randint(0, 4, (8, 3), generator=torch.Generator().manual_seed(1))
    t[:2] = -100
    rows = F.focal_loss(x, t, reduction="none")
    positives = ((t != -100) & (t != 0)).sum()
    number = torch.tensor(7.0)
    divisors = {"numel": 24, "valid": 18, "positives": positives, 3.5: 3.5, number: 7}
    for normalizer, by in divisors.items():
        for reduction in ("none", "mean", "sum"):
            got = F.focal_loss(x, t, reduction=reduction, normalizer=normalizer)
            torch.testing.assert_close(got, (rows if reduction == "none" else rows.sum()) / by)
    torch.testing.assert_close(F.focal_loss(x, t), rows.sum() / 18)
    p = torch.rand(8, 4, 3).softmax(1)
    got = F.focal_loss(x, p, normalizer="positives")
    torch.testing.assert_close(got, F.focal_loss(x, p, reduction="sum") / p[:, 1:].sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_divisor_that_is_no_half_number(dtype):
    x, t = torch.full((70000,), 9.0).to(dtype), torch.zeros(70000).to(dtype)
    x[:100] = 20
    rows = F.sigmoid_focal_loss(x.float(), t.float()) / 70000
    for options in ({"normalizer": torch.tensor(70000.0)}, {"normalizer": "valid", "ignore_index": -1}):
        got = F.sigmoid_focal_loss(x, t, **options)
        torch.testing.assert_close(got, rows.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positives_of_half_precision_probabilities(dtype):
    x, p = torch.randn(1000, 2), torch.tensor([0.001, 0.999]).to(dtype).expand(1000, 2)
    got = F.focal_loss(x, p, normalizer="positives", reduction="sum")
    expected = F.focal_loss(x, p, reduction="sum") / (1000 * (1 - p[0, 0].double().item()))
    torch.testing.assert_close(got, expected)


def test_a_normalizer_may_need_a_gradient():
    x, t = batch((6, 5), soft=False)
    by = torch.tensor(4.0, requires_grad=True)
    x.requires_grad_()
    loss = F.sigmoid_focal_loss(x, t, reduction="sum", normalizer=by)
    dx, dby = torch.autograd.grad(loss, (x, by))
    torch.testing.assert_close(dby, -loss.detach() / 4)
    (plain,) = torch.autograd.grad(F.sigmoid_focal_loss(x, t, reduction="sum"), x)
    torch.testing.assert_close(dx, plain / 4)


def test_nothing_positive_and_nothing_valid():
    x = batch((6, 5))[0].requires_grad_()
    none = torch.zeros(6, 5)
    loss = F.sigmoid_focal_loss(x, none, reduction="mean", normalizer="positives")
    torch.testing.assert_close(loss, F.sigmoid_focal_loss(x, none, reduction="sum"))
    empty = F.sigmoid_focal_loss(x, none, reduction="mean", mask=torch.zeros(6, 5, dtype=torch.bool))
    assert empty == 0
    (gradient,) = torch.autograd.grad(empty, x)
    assert not gradient.any()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_infinite_logits_at_gamma_zero_have_torchs_gradient(value, target):
    x = torch.full((20,), value, requires_grad=True)
    t = torch.full((20,), target)
    (got,) = torch.autograd.grad(F.sigmoid_focal_loss(x, t, alpha=-1, gamma=0.0).sum(), x)
    bce = nn.functional.binary_cross_entropy_with_logits
    (expected,) = torch.autograd.grad(bce(x, t, reduction="none").sum(), x)
    assert torch.equal(got, expected)


def test_alpha_modes_of_the_softmax_form():
    x = torch.randn(9, 4)
    t = torch.randint(0, 4, (9,))
    for mode, weights in (("balanced", [0.7, 0.3, 0.3, 0.3]), ("positive", [1, 0.3, 0.3, 0.3])):
        got = F.focal_loss(x, t, alpha=0.3, alpha_mode=mode)
        torch.testing.assert_close(got, F.focal_loss(x, t, alpha=torch.tensor(weights)))


def test_two_classes_are_one_sigmoid():
    x, t = torch.randn(50), torch.randint(0, 2, (50,))
    pairs = torch.stack((torch.zeros(50), x), 1)
    for alpha in (0.25, 0.9):
        got = F.focal_loss(pairs, t, alpha=alpha, alpha_mode="balanced", reduction="none")
        torch.testing.assert_close(got, F.sigmoid_focal_loss(x, t, alpha=alpha))


def test_gradients_of_gradients_with_every_option():
    x, t = batch((3, 4))
    options = {
        "alpha": torch.rand(4, dtype=torch.float64),
        "pos_weight": torch.rand(4, dtype=torch.float64),
        "mask": torch.rand(3, 4) < 0.8,
        "normalizer": "valid",
    }
    for reduction in ("none", "mean"):
        function = lambda x, r=reduction: F.sigmoid_focal_loss(
            x, t.to(x.dtype), gamma=1.5, reduction=r, **in_dtype(options, x)
            | {"mask": options["mask"]}
        )  # fmt: skip
        oracle.assert_differentiable_twice(function, x)

        def second(x, function=function):
            (dx,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), x)[0]

        got, truth = second(x.clone().requires_grad_()), second(x.double().requires_grad_())
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-7)


def test_options_may_need_gradients():
    x, t = batch((6, 5))
    alpha = torch.rand(5, requires_grad=True)
    pos_weight = torch.rand(5, requires_grad=True)
    got = torch.autograd.grad(
        F.sigmoid_focal_loss(x, t, alpha, reduction="sum", pos_weight=pos_weight), (alpha, pos_weight)
    )
    truth = torch.autograd.grad(
        sigmoid_form(x, t, alpha, 1 - alpha, pos_weight=pos_weight).sum(), (alpha, pos_weight)
    )
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5)


def test_compiles_with_every_option():
    x, t = batch((6, 5), soft=False)
    options = {
        "alpha": torch.rand(5),
        "pos_weight": torch.rand(5),
        "mask": torch.rand(6, 5) < 0.8,
        "ignore_index": -1,
        "normalizer": "positives",
    }
    for reduction in ("none", "mean"):
        oracle.assert_compiles(lambda x, r=reduction: F.sigmoid_focal_loss(x, t, reduction=r, **options), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_options(dtype):
    x, t = batch((20, 33), soft=False)
    x = x.to(dtype)
    options = {"alpha": torch.rand(33), "mask": torch.rand(20, 33) < 0.8}
    got = oracle.values_and_gradients(lambda x: F.sigmoid_focal_loss(x, t, reduction="mean", **options), x)
    expected = oracle.values_and_gradients(
        lambda x: F.sigmoid_focal_loss(x, t, reduction="mean", **options), x.float()
    )
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1].to(dtype), rtol=2**-7, atol=1e-6)


def test_extra_memory_with_options():
    x, t = batch((1 << 12, 64), soft=False)
    x.requires_grad_()
    indices = torch.randint(0, 64, (1 << 12,))
    for targets, options in ((t, {"alpha": torch.rand(64), "pos_weight": torch.rand(64)}), (indices, {})):
        with torch.profiler.profile(
            profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile:
            F.sigmoid_focal_loss(x, targets, reduction="mean", **options)
        allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
        assert x.nbytes <= allocated <= x.nbytes + 65536


def test_a_learned_weight_is_a_parameter_of_its_module():
    alpha = torch.nn.Parameter(torch.full((3,), 0.5))
    for loss, target in (
        (SigmoidFocalLoss(alpha), torch.zeros(2, 3)),
        (FocalLoss(alpha=alpha), torch.zeros(2, dtype=torch.int64)),
    ):
        assert [name for name, _ in loss.named_parameters()] == ["alpha"]
        loss(torch.ones(2, 3), target).backward()
    assert alpha.grad is not None


def test_modules_hand_their_options_on():
    x, t = batch((6, 5), soft=False)
    alpha, pos_weight = torch.rand(5), torch.rand(5)
    options = {"alpha_mode": "positive", "pos_weight": pos_weight, "ignore_index": -1, "normalizer": 3.0}
    loss = SigmoidFocalLoss(alpha, 1.5, "sum", **options)
    mask = torch.rand(6, 5) < 0.5
    torch.testing.assert_close(
        loss(x, t, mask), F.sigmoid_focal_loss(x, t, alpha, 1.5, "sum", mask=mask, **options)
    )
    assert loss.state_dict().keys() == {"alpha", "pos_weight"}
    assert "alpha_mode='positive'" in repr(loss)
    target = torch.randint(0, 5, (6,))
    options = {"label_smoothing": 0.1, "ignore_index": 2, "normalizer": "numel"}
    loss = FocalLoss(1.5, alpha, "sum", **options)
    torch.testing.assert_close(
        loss(x, target), F.focal_loss(x, target, gamma=1.5, alpha=alpha, reduction="sum", **options)
    )
    assert FocalLoss(alpha=[0.2, 0.8]).alpha.shape == (2,)
    balanced = FocalLoss(alpha=0.3, alpha_mode="balanced")
    torch.testing.assert_close(balanced(x, target), F.focal_loss(x, target, alpha=0.3, alpha_mode="balanced"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": torch.ones(4)}, "alpha must broadcast to the shape of inputs"),
        ({"alpha": 0.5, "alpha_mode": "per_class"}, "alpha must be a tensor of class weights where"),
        (
            {"alpha": torch.tensor([0.5, -0.1, 0.5, 1, 1]), "alpha_mode": "per_class"},
            "alpha must be at least 0",
        ),
        ({"alpha": torch.tensor([1.5])}, r"alpha must be in \[0, 1\], .* got 1.5"),
        ({"alpha": torch.tensor([math.nan])}, "alpha must be finite, got nan"),
        ({"alpha": torch.tensor([0.5, math.inf, 1, 1, 1])}, "alpha must be finite, got inf"),
        ({"alpha_mode": "both"}, "alpha_mode must be one of"),
        ({"pos_weight": torch.ones(3)}, "pos_weight must broadcast to the shape of inputs"),
        ({"pos_weight": math.nan}, "pos_weight must be finite"),
        ({"mask": torch.ones(6, 5)}, "mask must be a bool tensor, got torch.float32"),
        ({"mask": torch.ones(6, dtype=torch.bool)}, "mask must broadcast to the shape of inputs"),
        ({"ignore_index": "x"}, "ignore_index must be an integer"),
        ({"normalizer": "positive"}, "normalizer must be one of"),
        ({"normalizer": -1}, "normalizer must be positive"),
    ],
)
def test_bad_options(options, says):
    x, t = batch((6, 5))
    with pytest.raises(ThawkitError, match=says):
        F.sigmoid_focal_loss(x, t, **options)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SigmoidFocalLoss(gamma=-1), "gamma must be at least 0, got -1"),
        (lambda: SigmoidFocalLoss(2.0), r"alpha must be in \[0, 1\]"),
        (lambda: SigmoidFocalLoss(alpha_mode="both"), "alpha_mode must be one of"),
        (lambda: SigmoidFocalLoss(alpha_mode="per_class"), "alpha must be a tensor of class weights"),
        (lambda: SigmoidFocalLoss(pos_weight=math.inf), "pos_weight must be finite"),
        (lambda: SigmoidFocalLoss(normalizer="huh"), "normalizer must be one of"),
        (lambda: SigmoidFocalLoss(normalizer="none"), "normalizer must say what reduction='mean'"),
        (lambda: SigmoidFocalLoss(ignore_index=0.5), "ignore_index must be an integer"),
        (lambda: SigmoidFocalLoss(reduction="all"), "reduction must be one of"),
        (lambda: FocalLoss(gamma=math.nan), "gamma must be finite"),
        (lambda: FocalLoss(alpha_mode="both"), "alpha_mode must be one of"),
        (lambda: FocalLoss(label_smoothing=2), "label_smoothing must be from 0 to 1"),
        (lambda: FocalLoss(normalizer=0), "normalizer must be positive"),
        (lambda: FocalLoss(ignore_index=None), "ignore_index must be an integer"),
    ],
)
def test_modules_refuse_bad_options_when_they_are_made(build, says):
    with pytest.raises(ThawkitError, match=says):
        build()


def test_a_count_of_integers_normalizes():
    x, t = torch.randn(6, 4), (torch.rand(6, 4) > 0.5).float()
    for count in (t.sum().to(torch.int64), t.sum().to(torch.int32)[None]):
        got = F.sigmoid_focal_loss(x, t, reduction="sum", normalizer=count)
        torch.testing.assert_close(got, F.sigmoid_focal_loss(x, t, reduction="sum") / t.sum())
        assert SigmoidFocalLoss(reduction="sum", normalizer=count)(x, t) == got
        rows = F.focal_loss(x, t.argmax(1), reduction="none", normalizer=count)
        torch.testing.assert_close(rows, F.focal_loss(x, t.argmax(1), reduction="none") / t.sum())
    with pytest.raises(ThawkitError, match="normalizer must be positive"):
        F.sigmoid_focal_loss(x, t, reduction="sum", normalizer=torch.tensor(0))


def test_positives_of_rows_without_a_target():
    """Their probabilities are all 0, those of the classes but the first too."""
    x, t = torch.randn(5, 3), torch.zeros(5, 3)
    t[0, 1] = t[1, 2] = t[2, 0] = 1
    for target in (t, t.double(), t.half()):
        got = F.focal_loss(x, target, reduction="sum", normalizer="positives")
        torch.testing.assert_close(got, F.focal_loss(x, target, reduction="sum") / 2)
