"""A linear classifier's cross-entropy against its sum written out in float64, and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import LinearCrossEntropyLoss
from thawkit.losses import functional as F

CLASSES = 7
torchs_own = getattr(nn.functional, "linear_cross_entropy", None)
needs_torchs_own = pytest.mark.skipif(torchs_own is None, reason="torch has it since 2.13")


def layer(positions=(), features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, *positions, features, generator=generator)
    return weight, torch.randn(CLASSES, *positions, generator=generator)


def samples(leading, positions=(), features=5, seed=1):
    """Inputs, classes (some to be ignored) and probabilities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, features, generator=generator)
    classes = torch.randint(0, CLASSES, (*leading, *positions), generator=generator)
    probabilities = torch.rand(*leading, CLASSES, *positions, generator=generator)
    return x, classes, probabilities / probabilities.sum(len(leading), keepdim=True)


def class_weights():
    return torch.linspace(0.3, 1.7, CLASSES)


def definition(
    x, linear_weight, target, bias=None, weight=None, reduction="mean", ignore_index=-100, smoothing=0.0
):
    """One sum for every target: of leading dimension n, at position d."""
    leading, positions = x.shape[:-1], linear_weight.shape[1:-1]
    x, weights = x.reshape(-1, x.shape[-1]), linear_weight.reshape(CLASSES, -1, x.shape[-1])
    bias = torch.zeros(CLASSES, weights.shape[1]) if bias is None else bias.reshape(CLASSES, -1)
    probable = target.is_floating_point()
    target = target.reshape(len(x), *([CLASSES, -1] if probable else [-1]))
    weight = torch.ones(CLASSES).double() if weight is None else weight.double()
    losses, normalizer = [], 0
    for n in range(len(x)):
        for d in range(weights.shape[1]):
            logits = [weights[c, d].dot(x[n]) + bias[c, d] for c in range(CLASSES)]
            log_sum = torch.stack(logits).logsumexp(0)
            share = [target[n, c, d] if probable else float(target[n, d] == c) for c in range(CLASSES)]
            share = [(1 - smoothing) * s + smoothing / CLASSES for s in share]
            cost = sum(share[c] * weight[c] * (log_sum - logits[c]) for c in range(CLASSES))
            if not probable and target[n, d] == ignore_index:
                losses.append(0 * cost)
                continue
            losses.append(cost)
            normalizer += 1 if probable else weight[target[n, d]]
    losses = torch.stack(losses)
    if reduction == "none":
        return losses.reshape(leading + positions)
    return losses.sum() if reduction == "sum" else losses.sum() / normalizer


def loss(target, weight=None, reduction="mean", ignore_index=-100, smoothing=0.0):
    return lambda x, linear_weight, bias=None: F.linear_cross_entropy(
        x,
        linear_weight,
        target,
        linear_bias=bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
    )


SHAPES = [((), ()), ((1,), ()), ((9,), ()), ((2, 3), ()), ((4,), (3,)), ((3,), (2, 2)), ((2, 2), (3,))]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("leading", "positions"), SHAPES)
def test_classes_as_defined(leading, positions, reduction):
    x, classes, _ = samples(leading, positions)
    oracle.assert_is(
        loss(classes, reduction=reduction),
        lambda x, w, b: definition(x, w, classes, b, reduction=reduction),
        x,
        *layer(positions),
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_smoothing_and_ignored_classes_as_defined(weighted, smoothing, reduction):
    x, classes, _ = samples((8,))
    weight = class_weights() if weighted else None
    for ignored in (-100, 3):
        target = classes.masked_fill(torch.arange(8) % 3 == 0, ignored)
        oracle.assert_is(
            loss(target, weight, reduction, ignored, smoothing),
            lambda x, w, t=target, i=ignored: definition(x, w, t, None, weight, reduction, i, smoothing),
            x,
            layer()[0],
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("leading", "positions"), SHAPES)
def test_probabilities_as_defined_with_their_gradient(leading, positions, weighted, smoothing, reduction):
    x, _, probabilities = samples(leading, positions)
    weight = class_weights() if weighted else None
    oracle.assert_is(
        lambda x, w, b, t: loss(t, weight, reduction, smoothing=smoothing)(x, w, b),
        lambda x, w, b, t: definition(x, w, t, b, weight, reduction, smoothing=smoothing),
        x,
        *layer(positions),
        probabilities,
    )


@needs_torchs_own
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("leading", "positions"), [((), ()), ((6,), ()), ((6,), (3,)), ((6,), (2, 2))])
def test_values_are_torchs(leading, positions, reduction):
    x, classes, probabilities = samples(leading, positions)
    weight, bias = layer(positions)
    options = {"weight": class_weights(), "label_smoothing": 0.1, "reduction": reduction}
    for target in (classes, probabilities):
        got, theirs = (
            oracle.values_and_gradients(
                lambda x, w, b, f=f, t=target: f(x, w, t, linear_bias=b, **options), x, weight, bias
            )
            for f in (F.linear_cross_entropy, torchs_own)
        )
        torch.testing.assert_close(got, theirs)


def test_classes_as_bytes():
    x, classes, _ = samples((6,), (2,))
    weight, _ = layer((2,))
    torch.testing.assert_close(loss(classes.byte())(x, weight), loss(classes)(x, weight), rtol=0, atol=0)


@needs_torchs_own
def test_options_of_torch_are_taken():
    x, classes, _ = samples((6,))
    weight, _ = layer()
    got = F.linear_cross_entropy(x, weight, classes, options=nn.LinearCrossEntropyOptions())
    torch.testing.assert_close(got, torchs_own(x, weight, classes, options=nn.LinearCrossEntropyOptions()))


@pytest.mark.parametrize("size", [100.0, -1000.0])
def test_saturated(size):
    x, classes, _ = samples((9,))
    weight, _ = layer()
    x[0], weight[2] = 0, weight[1]
    oracle.assert_is(
        loss(classes, reduction="none", smoothing=0.1),
        lambda x, w: definition(x, w, classes, reduction="none", smoothing=0.1),
        x * size,
        weight,
    )


def test_where_all_are_ignored():
    x, classes, _ = samples((4,))
    ignored = torch.full_like(classes, -100)
    assert loss(ignored)(x, layer()[0]).isnan()  # as torch's
    for reduction in ("none", "sum"):
        value, dx, _ = oracle.values_and_gradients(loss(ignored, reduction=reduction), x, layer()[0])
        assert not value.any()
        assert not dx.any()


def test_one_class_costs_nothing():
    x, w = torch.randn(4, 5), torch.randn(1, 5)
    value, dx, _ = oracle.values_and_gradients(loss(torch.zeros(4, dtype=torch.int64)), x, w)
    assert value.item() == 0
    assert not dx.any()


def test_no_rows():
    x, classes, probabilities = samples((0,))
    weight = layer()[0].requires_grad_()
    for target in (classes, probabilities):
        assert loss(target, reduction="none")(x, weight).shape == (0,)
        value = loss(target, reduction="sum")(x, weight)
        assert value.item() == 0
        assert not torch.autograd.grad(value, weight)[0].any()


def test_only_a_frozen_classifier_or_frozen_features():
    x, classes, _ = samples((4,))
    weight, _ = layer()
    loss(classes)(x.requires_grad_(), weight).backward()
    assert weight.grad is None
    x.requires_grad_(False).grad = None
    loss(classes)(x, weight.requires_grad_()).backward()
    assert x.grad is None


def test_a_float32_layer_takes_half_precision_features():
    x, classes, probabilities = samples((6,))
    weight, bias = layer()
    x = x.bfloat16()
    for target in (classes, probabilities.half()):
        value, dx, dweight, dbias = oracle.values_and_gradients(loss(target), x, weight, bias)
        assert (value.dtype, dx.dtype) == (torch.float32, torch.bfloat16)
        assert dweight.dtype == dbias.dtype == torch.float32
        torch.testing.assert_close(value, loss(target)(x.float(), weight, bias))


def test_twice_differentiable():
    x, classes, probabilities = samples((3,), (2,), features=3)
    weight, bias = layer((2,), features=3)
    classes[0, 0] = -100
    oracle.assert_differentiable_twice(loss(classes, class_weights(), smoothing=0.1), x, weight, bias)
    oracle.assert_differentiable_twice(loss(classes, reduction="none"), x, weight, bias)
    oracle.assert_differentiable_twice(
        lambda x, w, b, t: loss(t, smoothing=0.1)(x, w, b), x, weight, bias, probabilities
    )


def test_keeps_to_what_all_losses_do():
    x, classes, probabilities = samples((9,))
    inputs = x, *layer()
    for target in (classes, probabilities):
        oracle.assert_layout_does_not_matter(loss(target), *inputs)
        oracle.assert_autocast_changes_nothing(loss(target), *inputs)
        oracle.assert_half_precision_is_lifted(loss(target), *inputs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles(backend):
    x, classes, _ = samples((9,))
    oracle.assert_compiles(loss(classes, class_weights(), smoothing=0.1), x, *layer(), backend=backend)


def test_probabilities_compile():
    x, _, probabilities = samples((9,), (2,))
    oracle.assert_compiles(lambda x, w, b, t: loss(t)(x, w, b), x, *layer((2,)), probabilities)


@needs_torchs_own
@pytest.mark.parametrize("weight", [None, class_weights()])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [(), (2, 3)])
def test_module_is_torchs(positions, bias, weight):
    options = {"out_features": positions, "bias": bias, "weight": weight, "label_smoothing": 0.1}
    torch.manual_seed(0)
    theirs = nn.LinearCrossEntropyLoss(5, CLASSES, **options)
    torch.manual_seed(0)
    ours = LinearCrossEntropyLoss(5, CLASSES, **options)
    x, classes, probabilities = samples((4,), positions)
    for target in (classes, probabilities):
        torch.testing.assert_close(ours(x, target), theirs(x, target))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    again = LinearCrossEntropyLoss(5, CLASSES, **options)
    again.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(again(x, classes), theirs(x, classes))


def test_module_options_reach_the_function():
    module = LinearCrossEntropyLoss(5, CLASSES, reduction="sum", ignore_index=2, dtype=torch.float64)
    x, classes, _ = samples((9,))
    expected = loss(classes, reduction="sum", ignore_index=2)(x.double(), module.linear.weight)
    torch.testing.assert_close(module(x.double(), classes), expected, rtol=0, atol=0)
    assert "num_classes=7" in repr(module)


X, W, T = torch.zeros(3, 4), torch.zeros(CLASSES, 4), torch.tensor([0, 1, 6])


@pytest.mark.parametrize(
    ("x", "weight", "target", "options", "says"),
    [
        ([1.0], W, T, {}, "input must be a tensor"),
        (X.int(), W, T, {}, "input must be float32"),
        (torch.zeros(()), W, T, {}, "input must have shape"),
        (X, W[0], T, {}, r"linear_weight must have shape \(classes, ..., 4\)"),
        (X, W[:0], T, {}, "linear_weight must have shape"),
        (X, W[:, :3], T, {}, r"linear_weight must have shape .*, got \(7, 3\)"),
        (X, W.to("meta"), T, {}, "linear_weight is on meta but input is on cpu"),
        (X, W.double(), T, {}, "linear_weight must be float64 if input is"),
        (X, W, T, {"linear_bias": torch.zeros(6)}, r"linear_bias must have shape \(7,\), got \(6,\)"),
        (X, W, T, {"linear_bias": torch.zeros(7).double()}, "linear_bias must be float64 if input is"),
        (X, W, T, {"weight": torch.zeros(7, 1)}, r"weight must have shape \(7,\)"),
        (X, W, T, {"weight": [1.0]}, "weight must be a tensor, got list"),
        (X, W, [0, 1, 6], {}, "target must be a tensor, got list"),
        (X, W, T.int(), {}, "target must hold int64 classes or floating probabilities, got torch.int32"),
        (X, W, T[:2], {}, r"target of classes must have shape \(3,\), got \(2,\)"),
        (X, W, torch.zeros(3, 6), {}, r"target of probabilities must have shape \(3, 7\), got \(3, 6\)"),
        (X, W, T + 1, {}, "target must hold classes 0 to 6 or ignore_index=-100, got 1 to 7"),
        (X, W, T - 1, {}, "target must hold classes 0 to 6 or ignore_index=-100, got -1 to 5"),
        (X, W, T.to("meta"), {}, "target is on meta"),
        (X, W, torch.zeros(3, 7), {"ignore_index": 0}, "ignore_index must be left out with probabilities"),
        (X, W, T, {"label_smoothing": 1.5}, "label_smoothing must be from 0 to 1, got 1.5"),
        (X, W, T, {"label_smoothing": math.nan}, "label_smoothing must be finite"),
        (X, W, T, {"reduction": "max"}, "reduction must be one of"),
        (X[:0], W, T[:0], {}, "input has no rows"),
    ],
)
def test_bad_input(x, weight, target, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.linear_cross_entropy(x, weight, target, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((0, 7), {}, "in_features must be an integer of at least 1"),
        ((4, 0), {}, "num_classes must be an integer of at least 1"),
        ((4, 7), {"weight": torch.ones(6)}, r"weight must have shape \(7,\)"),
        ((4, 7), {"label_smoothing": -0.1}, "label_smoothing must be from 0 to 1"),
    ],
)
def test_module_bad_arguments(arguments, options, says):
    with pytest.raises(ThawkitError, match=says):
        LinearCrossEntropyLoss(*arguments, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_nothing_has_a_gradient_of_0(smoothing):
    x, weight = torch.randn(4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    loss = F.linear_cross_entropy(x, weight, torch.full((4,), -100), label_smoothing=smoothing)
    assert loss.isnan()
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, weight)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [7, 600])
def test_the_mean_over_targets_that_all_weigh_0_is_torchs(classes, dtype, smoothing):
    leaves = [torch.randn(*size).to(dtype).requires_grad_() for size in ((4, 5), (classes, 5), (classes,))]
    target, class_weight = torch.tensor([0, -100, 1, 1]), torch.ones(classes, dtype=leaves[0].dtype)
    class_weight[:2] = 0
    got = F.linear_cross_entropy(
        *leaves[:2], target, linear_bias=leaves[2], weight=class_weight, label_smoothing=smoothing
    )
    logits = nn.functional.linear(*leaves)
    expected = nn.functional.cross_entropy(logits, target, class_weight, label_smoothing=smoothing)
    assert got.isnan()
    assert expected.isnan()
    for mine, theirs in zip(*(torch.autograd.grad(x, leaves) for x in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("size", [1e37, 1e38, -1e38])
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_of_huge_biases_is_finite(weighted, size):
    x, target, _ = samples((9,))
    weight, bias = layer()
    bias[target[0]] = size
    class_weight = class_weights() if weighted else None
    got = F.linear_cross_entropy(
        x, weight, target, linear_bias=bias, weight=class_weight, label_smoothing=0.1, reduction="none"
    )
    truth = nn.functional.cross_entropy(
        (x @ weight.t() + bias).double(),
        target,
        None if class_weight is None else class_weight.double(),
        label_smoothing=0.1,
        reduction="none",
    )
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6 * abs(size))
