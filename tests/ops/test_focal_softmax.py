"""Softmax focal loss against float64: values, gradients, saturation, ignored targets, special values."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.conftest import relative_error, values_and_gradients
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.focal import softmax_focal

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.7]
# one class, few and many classes in rows, around the widths of vectors, positions within a sample too
SHAPES = [
    (1, 1),
    (3, 2),
    (37, 5),
    (130, 15),
    (33, 17),
    (33, 31),
    (19, 33),
    (7, 80),
    (5, 1000),
    (2, 5000),
    (4, 7, 3),
    (3, 4, 5, 5),
    (2, 21, 9, 31),
    (2, 3, 300),
]


def logits_and_target(shape, seed=0, ignored=0.2, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * spread
    positions = shape[:1] + shape[2:]
    t = torch.randint(0, shape[1], positions, generator=generator)
    t[torch.rand(positions, generator=generator) < ignored] = -100
    return x, t


def probabilities(shape, seed=1):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).softmax(1)


def class_weights(classes):
    return torch.linspace(0.3, 1.7, classes)


def truth_of(x, t, **options):
    wide = {n: o.double() if isinstance(o, torch.Tensor) else o for n, o in options.items()}
    t = t.double() if t.is_floating_point() else t
    with ops.use_backend("reference"):
        return values_and_gradients(lambda x: softmax_focal(x, t, **wide), x.double())


def compare(x, t, tolerance=3e-6, **options):
    with ops.use_backend("cpu"):
        got = values_and_gradients(lambda x: softmax_focal(x, t, **options), x)
    assert got[0].dtype == torch.float32
    errors = [relative_error(a, b) for a, b in zip(got, truth_of(x, t, **options), strict=True)]
    assert max(errors) < tolerance


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_class_indices_equal_float64(shape, gamma, reduction):
    x, t = logits_and_target(shape)
    compare(x, t, gamma=gamma, reduction=reduction)
    compare(x, t, gamma=gamma, reduction=reduction, alpha=class_weights(shape[1]))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_label_smoothing_equals_float64(shape, gamma, reduction):
    x, t = logits_and_target(shape)
    options = {"gamma": gamma, "label_smoothing": 0.1, "reduction": reduction}
    compare(x, t, tolerance=1e-5, **options)
    compare(x, t, tolerance=1e-5, alpha=class_weights(shape[1]), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_equal_float64(shape, gamma, smoothing):
    x, _ = logits_and_target(shape)
    options = {"gamma": gamma, "label_smoothing": smoothing}
    for reduction in ("none", "mean"):
        compare(x, probabilities(shape), tolerance=1e-5, reduction=reduction, **options)
    compare(x, probabilities(shape), tolerance=1e-5, alpha=class_weights(shape[1]), **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_offset_and_margin_equal_float64(shape):
    x, t = logits_and_target(shape, spread=1.0)
    offset, margin = class_weights(shape[1]).log(), class_weights(shape[1]).flip(0)
    for gamma in (0.0, 2.0):
        compare(x, t, gamma=gamma, scale=1.5, offset=offset, margin=margin)
        compare(x, t, gamma=gamma, scale=1.5, offset=offset, label_smoothing=0.1, tolerance=1e-5)
        compare(x, t, gamma=gamma, margin=margin, reduction="none")


def test_one_hot_probabilities_are_class_indices():
    x, t = logits_and_target((40, 33), ignored=0)
    for gamma in GAMMAS:
        got = values_and_gradients(lambda x, g=gamma: F.focal_loss(x, t, gamma=g), x)
        hot = torch.nn.functional.one_hot(t, 33).float()
        expected = values_and_gradients(lambda x, g=gamma: F.focal_loss(x, hot, gamma=g), x)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(8, 2), (8, 40), (2, 4, 20)])
def test_saturated_logits(shape, gamma, dtype):
    # of the class that is right, and of one that is wrong
    x = torch.full(shape, -100.0)
    x[:, 0] = 100.0
    t = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    t[::2] = 1
    loss, gradient = values_and_gradients(
        lambda x: F.focal_loss(x, t, gamma=gamma, reduction="none"), x.to(dtype)
    )
    others = shape[1] - 1
    wrong = torch.full_like(loss[::2], 200.0)
    torch.testing.assert_close(loss[::2], wrong)
    assert loss[1::2].abs().max() < 1e-30
    assert gradient.isfinite().all()
    weight = torch.linspace(0.5, 1.5, loss.numel()).reshape(loss.shape)[::2]
    torch.testing.assert_close(gradient[::2, 1].float(), -weight, rtol=0.01, atol=0)
    assert others >= 1


@pytest.mark.parametrize("classes", [2, 40])
def test_probabilities_near_0_and_1_keep_their_digits(classes):
    for distance in (1e-3, 5.0, 15.0, 30.0, 80.0):
        x = torch.zeros(4, classes)
        x[:, 0] = distance
        t = torch.tensor([0, 1, 0, 1])
        for gamma in (0.0, 0.5, 2.0):
            loss, gradient = values_and_gradients(
                lambda x, t=t, g=gamma: F.focal_loss(x, t, gamma=g, reduction="none"), x
            )
            rest = torch.tensor((classes - 1) * math.exp(-distance), dtype=torch.float64)
            sure = (rest / (1 + rest)) ** gamma * torch.log1p(rest)
            if sure > 1e-36:
                torch.testing.assert_close(loss[0].double(), sure, rtol=2e-5, atol=0)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(37, 5), (20, 50), (2, 5, 40)])
def test_half_precision_is_float32_of_the_rounded_logits(dtype, shape):
    x, t = logits_and_target(shape)
    x = x.to(dtype)
    for target in (t, probabilities(shape), probabilities(shape).to(dtype)):
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "gamma": 0.0}):
            got = values_and_gradients(lambda x, t=target, o=options: F.focal_loss(x, t, **o), x)
            wide = values_and_gradients(
                lambda x, t=target, o=options: F.focal_loss(
                    x, t.float() if t.is_floating_point() else t, **o
                ),
                x.float(),
            )
            assert got[0].dtype == torch.float32
            assert got[1].dtype == dtype
            torch.testing.assert_close(got[0], wide[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got[1].float(), wide[1], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 3), (9, 40), (3, 4, 20)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_special_values_come_out_where_the_definition_has_them(shape, value, gamma):
    x, t = logits_and_target(shape, ignored=0)
    for at_target in (False, True):
        y = x.clone()
        first = t.reshape(shape[0], -1)[0, 0].item()
        y.reshape(*shape[:2], -1)[0, first if at_target else (first + 1) % shape[1], 0] = value
        got = values_and_gradients(lambda x: F.focal_loss(x, t, gamma=gamma, reduction="none"), y)
        truth = truth_of(y, t, gamma=gamma, reduction="none")
        for a, b in zip(got, truth, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(9, 3), (9, 40), (3, 4, 20), (3, 4, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_is_ignored_has_no_loss_and_no_gradient_whatever_stands_there(shape, smoothing):
    x, t = logits_and_target(shape, ignored=0.4)
    expected = values_and_gradients(lambda x: F.focal_loss(x, t, label_smoothing=smoothing), x)
    for value in (math.nan, math.inf, 1e30):
        y = x.masked_fill((t == -100).unsqueeze(1), value)
        got = values_and_gradients(lambda x: F.focal_loss(x, t, label_smoothing=smoothing), y)
        torch.testing.assert_close(got, expected)
    everything = torch.full_like(t, 1)
    loss, gradient = values_and_gradients(
        lambda x: F.focal_loss(x, everything, ignore_index=1, label_smoothing=smoothing), x * math.nan
    )
    assert loss == 0
    assert not gradient.any()


def test_layouts():
    x, t = logits_and_target((2, 5, 6, 7))
    expected = values_and_gradients(lambda x: F.focal_loss(x, t), x)
    for layout in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
    ):
        got = values_and_gradients(lambda x, layout=layout: F.focal_loss(layout(x), t), x)
        torch.testing.assert_close(got, expected)
        rows = F.focal_loss(layout(x), t, reduction="none")
        torch.testing.assert_close(rows, F.focal_loss(x, t, reduction="none"))
        p = probabilities(x.shape)
        torch.testing.assert_close(F.focal_loss(layout(x), p), F.focal_loss(x, p))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_tiles(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in ((700, 80), (5000, 7), (3, 21, 1111)):
            compare(*logits_and_target(shape))
    finally:
        torch.set_num_threads(before)


def test_empty_input():
    x = torch.zeros(0, 3, requires_grad=True)
    t = torch.zeros(0, dtype=torch.int64)
    assert F.focal_loss(x, t, reduction="none").shape == (0,)
    assert F.focal_loss(x, t, reduction="sum") == 0
    assert F.focal_loss(x, t, reduction="sum", normalizer="positives") == 0
    with pytest.raises(ThawkitError, match="logits has no rows"):
        F.focal_loss(x, t)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck_and_double_backward(reduction):
    x, t = logits_and_target((3, 4, 2), spread=1.0)
    p = probabilities((3, 4, 2)).double()
    for target, options in (
        (t, {"label_smoothing": 0.1}),
        (t, {}),
        (p, {"alpha": class_weights(4).double()}),
    ):
        function = lambda x, t=target, o=options: F.focal_loss(x, t, gamma=1.5, reduction=reduction, **o)
        assert torch.autograd.gradcheck(function, (x.double().requires_grad_(),))
        assert torch.autograd.gradgradcheck(function, (x.double().requires_grad_(),))

        def second(x, function=function):
            (dx,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), x)[0]

        got, truth = second(x.detach().requires_grad_()), second(x.double().requires_grad_())
        assert relative_error(got, truth) < 1e-5


def test_weights_and_probabilities_may_need_gradients():
    x, t = logits_and_target((6, 5))
    alpha = class_weights(5).requires_grad_()
    (got,) = torch.autograd.grad(F.focal_loss(x, t, alpha=alpha, reduction="sum"), alpha)
    rows = F.focal_loss(x, t, reduction="none")
    counted = t != -100
    torch.testing.assert_close(got, torch.zeros(5).index_add(0, t[counted], rows[counted]))
    p = probabilities((6, 5)).requires_grad_()
    F.focal_loss(x, p).backward()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1 << 11, 128), (1 << 15, 8), (4, 64, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extra_memory_is_one_gradient(shape, dtype, smoothing):
    x, t = logits_and_target(shape)
    x = x.to(dtype).requires_grad_()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        F.focal_loss(x, t, label_smoothing=smoothing)
    allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
    counting = t.numel() + 4096  # one bool a target, to count those that are not ignored
    workspace = torch.get_num_threads() * 4 * 3 * 128 * 128
    assert x.nbytes <= allocated <= x.nbytes + counting + workspace


def test_operators_are_well_formed():
    x, t = logits_and_target((4, 9))
    namespace = torch.ops.thawkit
    vectors = class_weights(9), class_weights(9), class_weights(9)
    for target, options in (
        (t, (None, None, None, 1.0, 2.0, 0.0, -100, "cpu")),
        (t, (*vectors, 1.5, 0.0, 0.1, -100, "cpu")),
        (probabilities((4, 9)), (vectors[0], None, None, 1.0, 0.5, 0.1, -100, "cpu")),
    ):
        torch.library.opcheck(namespace.softmax_focal.default, (x, target, *options))
        torch.library.opcheck(namespace.softmax_focal_backward.default, (torch.rand(4), x, target, *options))
        for need_gradient in (False, True):
            more = (0.1, torch.tensor(3.0), need_gradient)
            torch.library.opcheck(namespace.softmax_focal_total.default, (x, target, *options, *more))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_compiles_without_graph_breaks(reduction, smoothing):
    x, t = logits_and_target((4, 9))
    x.requires_grad_()
    alpha = class_weights(9)
    step = lambda x: F.focal_loss(x * 2, t, alpha=alpha, label_smoothing=smoothing, reduction=reduction).sum()
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(step(x), x)[0])


@pytest.mark.parametrize("target", [7, -1, 10**9])
def test_a_compiled_loss_refuses_classes_that_there_are_not(target):
    compiled = torch.compile(F.focal_loss, backend="aot_eager")
    with pytest.raises(ThawkitError, match=f"target must hold class indices 0 to 4 .* got {target}"):
        compiled(torch.zeros(3, 5), torch.full((3,), target))


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (torch.tensor([0, 5]), {}, "class indices 0 to 2 or ignore_index=-100, got 5"),
        (torch.tensor([0, -100]), {"ignore_index": 255}, "ignore_index=255, got -100"),
        (torch.ones(2, 3).softmax(1), {"alpha_mode": "mine"}, "alpha_mode must be one of"),
        (torch.tensor([0, 1]), {"label_smoothing": 1.5}, "label_smoothing must be from 0 to 1, got 1.5"),
        (torch.tensor([0, 1]), {"ignore_index": 0.5}, "ignore_index must be an integer"),
        (torch.tensor([0, 1]), {"alpha": 0.25}, "alpha must be a tensor of 3 class weights, got float"),
        (
            torch.tensor([0, 1]),
            {"alpha": torch.ones(3), "alpha_mode": "balanced"},
            "alpha must be a number where alpha_mode='balanced'",
        ),
        (torch.tensor([0, 1]), {"alpha": 2.0, "alpha_mode": "balanced"}, r"alpha must be in \[0, 1\]"),
        (torch.tensor([0, 1]), {"normalizer": "all"}, "normalizer must be one of"),
        (torch.tensor([0, 1]), {"normalizer": "none"}, "normalizer must say what reduction='mean' divides"),
        (torch.tensor([0, 1]), {"normalizer": 0.0}, "normalizer must be positive and finite, got 0"),
        (torch.tensor([0, 1]), {"normalizer": torch.ones(2)}, "normalizer must have one element"),
        (torch.tensor([0, 1]), {"reduction": "avg"}, "reduction must be one of"),
    ],
)
def test_bad_input(target, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.focal_loss(torch.zeros(2, 3), target, **options)
    with pytest.raises(ThawkitError, match=r"logits must have shape \(N, C, ...\), C not 0"):
        F.focal_loss(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64))
