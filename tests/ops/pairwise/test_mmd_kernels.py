"""The kernels of MMD, weights of rows, classes and several layers against their float64 definitions."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.conftest import against_reference
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

KERNELS = ["rbf", "laplace", "imq", "energy", "linear", "poly"]
SIZES = [(2, 2, 1), (3, 11, 4), (36, 36, 20), (101, 67, 33), (400, 250, 12)]


def two_samples(n, m, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, features, generator=generator),
        torch.randn(m, features, generator=generator) * 1.3 + 0.4,
    )


def pair_options(n, m):
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(n, generator=generator), torch.rand(m, generator=generator)
    weights[0][0] = 0.0 if n > 2 else 0.5
    labels = (
        torch.randint(-1, 3, (n,), generator=generator),
        torch.randint(0, 4, (m,), generator=generator),
    )
    return {
        "plain": {},
        "weights": {"weights": weights},
        "classes": {"class_conditional": labels},
        "both": {"weights": weights, "class_conditional": labels},
    }


def tolerance(kernel):
    """Roots lose half of the digits of near pairs; polynomials cancel."""
    return 1e-4 if kernel in ("energy", "laplace", "poly") else 3e-5


@pytest.mark.parametrize("options", ["plain", "weights", "classes", "both"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_equal_float64(sizes, kernel, estimator, options):
    x, y = two_samples(*sizes)
    chosen = pair_options(*sizes[:2])[options]
    errors = against_reference(lambda x, y: F.mmd(x, y, kernel=kernel, estimator=estimator, **chosen), x, y)
    assert max(errors) < tolerance(kernel)


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
@pytest.mark.parametrize("sizes", SIZES)
def test_learned_bandwidths_get_their_gradient_from_the_kernel(sizes, kernel):
    x, y = two_samples(*sizes)
    function = lambda x, y, s: F.mmd(x, y, kernel=kernel, bandwidths=s, estimator="unbiased")
    errors = against_reference(function, x, y, torch.tensor([0.5, 1.0, 4.0]))
    assert max(errors) < tolerance(kernel)


def test_only_the_bandwidths_may_want_a_gradient():
    x, y = two_samples(20, 30, 4)
    s = torch.tensor([2.0], requires_grad=True)
    with ops.use_backend("cpu"):
        F.mmd(x, y, bandwidths=s).backward()
    exact = s.detach().double().requires_grad_()
    F.mmd(x.double(), y.double(), bandwidths=exact).backward()
    torch.testing.assert_close(s.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("need", [(True, False), (False, True)])
@pytest.mark.parametrize("layers", [1, 2])
def test_only_one_sample_may_want_a_gradient(layers, need):
    each = [two_samples(20, 30, 4, seed=i) for i in range(layers)]

    def gradients(dtype):
        xs, ys = ([pair[i].to(dtype).requires_grad_(need[i]) for pair in each] for i in (0, 1))
        wanted = xs if need[0] else ys
        return torch.autograd.grad(F.joint_mmd(xs, ys), wanted)

    with ops.use_backend("cpu"):
        got = gradients(torch.float32)
    for g, expected in zip(got, gradients(torch.float64), strict=True):
        torch.testing.assert_close(g.double(), expected, rtol=1e-3, atol=1e-6)


def kernel_value(kernel, u, v, s):
    d2 = (u[:, None] - v[None]).square().sum(2)
    if kernel == "linear":
        return u @ v.t()
    if kernel == "poly":
        return (u @ v.t() / u.shape[1] + 1) ** 3
    if kernel == "energy":
        return -d2.sqrt()
    if kernel == "rbf":
        return torch.exp(-d2 / (2 * s * s))
    return torch.exp(-d2.sqrt() / s) if kernel == "laplace" else s * s / (s * s + d2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_by_their_definition(kernel):
    x, y = (z.double() for z in two_samples(7, 5, 3))
    k = lambda u, v: kernel_value(kernel, u, v, 1.5)
    options = {"bandwidths": torch.tensor([1.5])} if kernel in ("rbf", "laplace", "imq") else {}
    expected = k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        got = F.mmd(x.to(dtype), y.to(dtype), kernel=kernel, **options)
        assert got.item() == pytest.approx(expected.item(), rel=rel)
    off = lambda square: square - square.diag().diag()
    expected = off(k(x, x)).sum() / 42 + off(k(y, y)).sum() / 20 - 2 * k(x, y).mean()
    got = F.mmd(x, y, kernel=kernel, estimator="unbiased", **options)
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_whole_weights_are_repeated_rows(kernel, estimator):
    x, y = two_samples(6, 5, 3)
    times_x, times_y = torch.tensor([1, 2, 1, 3, 1, 1]), torch.tensor([2, 1, 1, 0, 1])
    options = {"bandwidths": torch.tensor([2.0])} if kernel in ("rbf", "laplace", "imq") else {}
    got = F.mmd(
        x, y, kernel=kernel, estimator=estimator, weights=(times_x.float(), times_y.float()), **options
    )
    rows_x, rows_y = (z.double().repeat_interleave(t, 0) for z, t in ((x, times_x), (y, times_y)))
    if estimator == "biased":
        expected = F.mmd(rows_x, rows_y, kernel=kernel, **options)
    else:  # a row is never paired with itself, nor with its own repetition
        w, v = times_x.double(), times_y.double()
        w, v = w / w.sum(), v / v.sum()
        k = lambda a, b: kernel_value(kernel, a.double(), b.double(), 2.0)
        within = lambda w, a: (w @ k(a, a) @ w - w.square() @ k(a, a).diag()) / (1 - w.square().sum())
        expected = within(w, x) + within(v, y) - 2 * w @ k(x, y) @ v
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("light", [1e-3, 1e-6, 1e-8, 1e-20, 1e-45])
@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_row_may_have_nearly_all_of_the_weight(dtype, kernel, light, classes):
    """There are few pairs of distinct rows then, and the U-statistic is their mean all the same."""
    x, y = (z.to(dtype) for z in two_samples(4, 5, 3))
    u, v = x.double(), y.double()
    of_x = torch.tensor([1, light, 0, 0], dtype=torch.float64)
    k = lambda a, b: kernel_value(kernel, a, b, 1.0)
    off = k(v, v) - k(v, v).diag().diag()
    expected = k(u, u)[0, 1] + off.sum() / 20 - 2 * of_x / of_x.sum() @ k(u, v).mean(1)
    options = {"weights": (of_x, torch.ones(5)), "estimator": "unbiased", "kernel": kernel}
    if kernel == "rbf":
        options["bandwidths"] = torch.ones(1)
    if classes:
        options["class_conditional"] = (
            torch.zeros(4, dtype=torch.int64),
            torch.zeros(5, dtype=torch.int64),
        )
    got = F.mmd(x, y, **options)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_only_the_ratios_of_weights_matter(estimator):
    """Their dtype may hold weights and neither their sum nor their squares."""
    x, y = two_samples(9, 8, 3)
    of_x, of_y = (torch.rand(rows, dtype=torch.float64) + 0.1 for rows in (9, 8))
    expected = F.mmd(x, y, estimator=estimator, weights=(of_x, of_y))
    labels = torch.arange(9) % 2, torch.arange(8) % 2
    in_classes = F.mmd(x, y, estimator=estimator, weights=(of_x, of_y), class_conditional=labels)
    for scale in (1e-307, 1e-37, 1e-30, 1e30, 3e38, 1e308):
        dtype = torch.float32 if 1e-40 < scale < 1e40 else torch.float64
        weights = tuple((w * (scale / 1.1)).to(dtype) for w in (of_x, of_y))
        got = F.mmd(x, y, estimator=estimator, weights=weights)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        got = F.mmd(x, y, estimator=estimator, weights=weights, class_conditional=labels)
        torch.testing.assert_close(got, in_classes, rtol=1e-5, atol=1e-6)


def test_the_mean_over_classes_has_all_digits_of_float64():
    x, y = (z.double() for z in two_samples(20, 30, 4))
    labels = torch.arange(20) % 3, torch.arange(30) % 3
    s = torch.tensor([2.0])
    classes = [(x[labels[0] == c], y[labels[1] == c]) for c in range(3)]
    expected = sum(F.mmd(a, b, bandwidths=s) for a, b in classes) / 3
    for got in (
        F.mmd(x, y, bandwidths=s, class_conditional=labels),
        F.joint_mmd([x], [y], bandwidths=s, class_conditional=labels),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_of_one_row_in_either_sample_does_not_count_where_unbiased(dtype, few):
    samples = [z.to(dtype) for z in two_samples(20, 20, 4)]
    labels = [torch.arange(20) % 2, torch.arange(20) % 2]
    labels[few][7] = 2
    labels[1 - few][:4] = 2
    s = torch.tensor([2.0])
    got = F.mmd(*samples, bandwidths=s, estimator="unbiased", class_conditional=tuple(labels))
    classes = [[z[label == c] for z, label in zip(samples, labels, strict=True)] for c in (0, 1)]
    expected = sum(F.mmd(*each, bandwidths=s, estimator="unbiased") for each in classes) / 2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_class_conditional_is_the_mean_over_common_classes(estimator):
    x, y = two_samples(20, 30, 4)
    labels = torch.arange(20) % 4, torch.arange(30) % 3 + 1
    s = torch.tensor([2.0])
    got = F.mmd(x, y, bandwidths=s, estimator=estimator, class_conditional=labels)
    classes = [(x[labels[0] == c], y[labels[1] == c]) for c in (1, 2, 3)]
    expected = sum(F.mmd(a, b, bandwidths=s, estimator=estimator) for a, b in classes) / 3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_no_common_class_costs_nothing():
    x, y = (z.requires_grad_() for z in two_samples(6, 5, 3))
    labels = torch.zeros(6, dtype=torch.int64), torch.ones(5, dtype=torch.int64)
    for estimator in ("biased", "unbiased"):
        value = F.mmd(x, y, estimator=estimator, class_conditional=labels)
        gradients = torch.autograd.grad(value, (x, y))
        assert value.item() == 0
        assert all(g.abs().max() == 0 for g in gradients)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_coinciding_rows_have_finite_gradients(kernel, backend):
    x = torch.ones(6, 3)
    y = torch.cat((torch.ones(4, 3), torch.randn(5, 3)))
    for a, b in ((x, x.clone()), (x, y)):
        a, b = a.requires_grad_(), b.clone().requires_grad_()
        with ops.use_backend(None if kernel == "linear" else backend):
            value = F.mmd(a, b, kernel=kernel)
            gradients = torch.autograd.grad(value, (a, b))
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sample_and_itself_are_the_same(kernel):
    x, _ = two_samples(50, 2, 8)
    assert F.mmd(x, x.clone(), kernel=kernel).item() == pytest.approx(0, abs=1e-5)
    value = F.mmd(x[:1], x[:1].clone(), kernel=kernel)
    assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq", "energy"])
@pytest.mark.parametrize("bandwidths", ["mean", "median", "given"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30])
def test_scales_whose_squares_leave_float32(kernel, bandwidths, scale):
    x, y = (z * scale for z in two_samples(40, 50, 6))
    if kernel == "energy":
        bandwidths = "mean"
    elif bandwidths == "given":
        bandwidths = torch.tensor([0.5 * scale, 3 * scale], dtype=torch.float64)
    assert max(against_reference(lambda x, y: F.mmd(x, y, kernel=kernel, bandwidths=bandwidths), x, y)) < 1e-4


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_learned_bandwidths_of_such_scales(kernel, scale):
    x, y = (z * scale for z in two_samples(40, 50, 6))
    s = torch.tensor([0.5 * scale, 3 * scale], dtype=torch.float64)
    rows = lambda s: (x.double(), y.double()) if ops.dispatch.forced_backend() == "reference" else (x, y)
    errors = against_reference(lambda s: F.mmd(*rows(s), kernel=kernel, bandwidths=s), s)
    assert max(errors) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_is_computed_in_single(kernel, dtype):
    x, y = (z.to(dtype) for z in two_samples(40, 50, 6))
    got = [z.clone().requires_grad_() for z in (x, y)]
    value = F.mmd(*got, kernel=kernel)
    gradients = torch.autograd.grad(value, got)
    exact = [z.double().requires_grad_() for z in (x, y)]
    truth = F.mmd(*exact, kernel=kernel)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-5)
    for g, t in zip(gradients, torch.autograd.grad(truth, exact), strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), t, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_spread(kernel, value):
    x, y = two_samples(20, 30, 4)
    x[3, 1] = value
    assert not F.mmd(x, y, kernel=kernel).isfinite()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel):
    x, y = (z.double().requires_grad_() for z in two_samples(4, 6, 3))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(k, generator=generator, dtype=torch.float64).requires_grad_() for k in (4, 6)]
    s = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)

    def function(x, y, w, v, s):
        options = {"bandwidths": s} if kernel in ("rbf", "laplace", "imq") else {}
        return F.mmd(x, y, kernel=kernel, estimator="unbiased", weights=(w, v), **options) + 0 * s.sum()

    assert torch.autograd.gradcheck(function, (x, y, *weights, s))
    assert torch.autograd.gradgradcheck(function, (x, y, *weights, s))


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq", "energy", "poly"])
def test_second_derivatives_of_the_kernels_are_those_of_the_definition(kernel):
    def second(x, y):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.mmd(x, y, kernel=kernel), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0].double()

    x, y = two_samples(6, 7, 3)
    exact = second(x.double(), y.double())
    torch.testing.assert_close(second(x, y), exact, rtol=1e-3, atol=1e-5 * exact.abs().max().item())


LAYERS = {
    "two": (["rbf", "rbf"], "mean"),
    "mixed": (["rbf", "imq", "laplace"], ["mean", (3.0, 2), torch.tensor([2.0])]),
    "with a product": (["rbf", "linear", "poly"], ["median", "mean", "mean"]),
    "energy": (["energy", "rbf"], "mean"),
    "one": (["laplace"], "mean"),
}


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [(2, 3), (36, 36), (101, 67), (400, 250)])
def test_joint_mmd_equals_float64(sizes, name, estimator):
    kernels, bandwidths = LAYERS[name]
    count = len(kernels)
    pairs = [two_samples(*sizes, 5 + 7 * i, seed=i) for i in range(count)]

    def function(*tensors):
        return F.joint_mmd(
            list(tensors[:count]),
            list(tensors[count:]),
            kernel=kernels,
            bandwidths=bandwidths,
            estimator=estimator,
        )

    errors = against_reference(function, *[x for x, _ in pairs], *[y for _, y in pairs])
    assert max(errors) < 1e-4


def test_joint_mmd_by_its_definition():
    layers = [[z.double() for z in two_samples(7, 5, 3, seed=i)] for i in range(2)]
    scales = [torch.tensor([1.0, 4.0]), torch.tensor([2.0])]
    k = lambda u, v, s: sum(torch.exp(-(torch.cdist(u, v) ** 2) / (2 * t * t)) for t in s)
    product = lambda a, b: k(layers[0][a], layers[0][b], scales[0]) * k(layers[1][a], layers[1][b], scales[1])
    expected = product(0, 0).mean() + product(1, 1).mean() - 2 * product(0, 1).mean()
    xs, ys = [x.float() for x, _ in layers], [y.float() for _, y in layers]
    assert F.joint_mmd(xs, ys, bandwidths=scales).item() == pytest.approx(expected.item(), rel=1e-4)


def test_joint_mmd_learns_the_bandwidths_of_every_layer():
    layers = [two_samples(50, 40, 3, seed=i) for i in range(2)]
    xs, ys = [x for x, _ in layers], [y for _, y in layers]

    def function(first, second):
        as_rows = lambda rows: [r.to(first.dtype) for r in rows]
        return F.joint_mmd(as_rows(xs), as_rows(ys), kernel=["rbf", "imq"], bandwidths=[first, second])

    assert max(against_reference(function, torch.tensor([1.0, 3.0]), torch.tensor([2.0]))) < 1e-4


def test_more_layers_than_the_kernel_takes_go_by_the_reference():
    layers = [two_samples(9, 8, 3, seed=i) for i in range(9)]
    xs, ys = [x for x, _ in layers], [y for _, y in layers]
    exact = F.joint_mmd([x.double() for x in xs], [y.double() for y in ys])
    torch.testing.assert_close(F.joint_mmd(xs, ys).double(), exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 3), (36, 36), (101, 67), (400, 250)])
@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq", "poly"])
def test_local_mmd_equals_float64(sizes, kernel):
    x, y = two_samples(*sizes, 12)
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 5, sizes[:1], generator=generator)
    probabilities = torch.randn(sizes[1], 6, generator=generator).softmax(1)
    function = lambda x, y: F.local_mmd(x, y, labels, probabilities, kernel=kernel)
    assert max(against_reference(function, x, y)) < 1e-4


def test_local_mmd_by_its_definition():
    x, y = (z.double() for z in two_samples(9, 7, 3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0])
    probabilities = torch.randn(7, 4, generator=torch.Generator().manual_seed(3)).double().softmax(1)
    k = lambda u, v: torch.exp(-(torch.cdist(u, v) ** 2) / 8)
    expected = 0
    for c in range(3):  # no row of the source belongs to class 3
        ws, wt = (labels == c).double(), probabilities[:, c]
        ws, wt = ws / ws.sum(), wt / wt.sum()
        expected += (ws @ k(x, x) @ ws + wt @ k(y, y) @ wt - 2 * ws @ k(x, y) @ wt) / 3
    s = torch.tensor([2.0])
    for a, b in ((x, y), (x.float(), y.float())):
        got = F.local_mmd(a, b, labels, probabilities.to(a.dtype), bandwidths=s)
        assert got.item() == pytest.approx(expected.item(), rel=1e-4)
        shares = torch.nn.functional.one_hot(labels, 4).to(a.dtype)
        assert torch.equal(got, F.local_mmd(a, b, shares, probabilities.to(a.dtype), bandwidths=s))


def test_local_mmd_of_certain_targets_is_the_class_conditional_one():
    x, y = two_samples(20, 30, 4)
    labels = torch.arange(20) % 4, torch.arange(30) % 3 + 1
    certain = torch.nn.functional.one_hot(labels[1], 4).float()
    got = F.local_mmd(x, y, labels[0], certain)
    torch.testing.assert_close(got, F.mmd(x, y, class_conditional=labels), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rows", "dtype"), [(300, torch.bfloat16), (70_000, torch.float16)])
def test_local_mmd_of_half_precision_has_shares_in_single(rows, dtype):
    """A class of 70,000 rows has a sum that float16 does not hold, and 1 / 300 is not in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=generator).to(dtype).requires_grad_()
    y = (torch.randn(30, 2, generator=generator) + 1).to(dtype)
    labels, shares = torch.zeros(rows, dtype=torch.int64), torch.ones(30, 1, dtype=dtype)
    with ops.use_backend("cpu"):
        got = F.local_mmd(x, y, labels, shares, kernel="linear")
    (gradient,) = torch.autograd.grad(got * rows, x)
    difference = x.detach().double().mean(0) - y.double().mean(0)
    torch.testing.assert_close(got.double(), difference.square().sum(), rtol=1e-5, atol=0)
    assert gradient.dtype == dtype
    expected = (2 * difference).expand(rows, 2)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-2, atol=1e-4)


def test_local_mmd_gives_probabilities_no_gradient():
    x, y = two_samples(6, 5, 3)
    shares, probabilities = (torch.rand(n, 2, requires_grad=True) for n in (6, 5))
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            assert not F.local_mmd(x, y, shares, probabilities).requires_grad


def test_local_mmd_without_common_classes_is_nothing():
    x, y = (z.requires_grad_() for z in two_samples(5, 4, 3))
    probabilities = torch.zeros(4, 3)
    probabilities[:, 2] = 1
    value = F.local_mmd(x, y, torch.zeros(5, dtype=torch.int64), probabilities)
    assert value.item() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(value, (x, y)))


@pytest.mark.parametrize("need", ["samples", "rates", "nothing"])
def test_operator_is_well_formed(need):
    x, y = two_samples(9, 12, 5)
    z = torch.randn(9, 3), torch.randn(12, 3)
    arguments = (
        [x, y, *z],
        [torch.tensor([0.1, 0.2]), torch.zeros(0)],
        torch.randn(21) if need == "samples" else None,
        torch.ones(21) if need == "samples" else None,
        torch.arange(21) % 3 if need == "samples" else None,
        ["imq", "poly"],
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0, 1.0],
        need == "samples",
        [need == "samples", need == "samples"],
        [need == "rates", False],
        "cpu",
        "auto",
    )
    torch.library.opcheck(torch.ops.thawkit.mmd.default, arguments)


X, Y = torch.zeros(3, 2), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: F.mmd(X, Y, weights=torch.ones(3)), "weights must be \\(weights of x, weights of y\\)"),
        (
            lambda: F.mmd(X, Y, weights=(torch.ones(3), torch.ones(3))),
            "weights\\[1\\] must have shape",
        ),
        (lambda: F.mmd(X, Y, weights=(torch.zeros(3), torch.ones(4))), "at least 1 positive numbers, got 0"),
        (lambda: F.mmd(X, Y, weights=(-torch.ones(3), torch.ones(4))), "finite numbers from 0 up"),
        (lambda: F.mmd(X, Y, weights=([1.0] * 3, torch.ones(4))), "weights\\[0\\] must be a tensor"),
        (lambda: F.mmd(X, Y, class_conditional=torch.ones(3)), "class_conditional must be \\(labels of x"),
        (
            lambda: F.mmd(X, Y, class_conditional=(torch.ones(3), torch.ones(4))),
            "class_conditional\\[0\\] must hold integers",
        ),
        (
            lambda: F.mmd(X, Y, kernel="energy", bandwidths=torch.ones(1)),
            "bandwidths go with the kernels",
        ),
        (lambda: F.mmd(X, Y, kernel="poly", degree=0), "degree must be an integer of at least 1"),
        (lambda: F.mmd(X, Y, kernel="poly", offset=math.inf), "offset must be finite"),
        (lambda: F.mmd(X, Y, bandwidths=torch.ones(2, 2)), "bandwidths must have shape \\(kernels,\\)"),
        (lambda: F.joint_mmd(X, Y), "x and y must be lists of as many tensors"),
        (lambda: F.joint_mmd([X, X], [Y, torch.zeros(5, 2)]), "y\\[1\\] must have 4 rows"),
        (
            lambda: F.joint_mmd([X, X], [Y, Y], kernel=["rbf"]),
            "kernel must be one for all layers or",
        ),
        (lambda: F.joint_mmd([X], [Y], estimator="rff"), "estimator must be one of"),
        (
            lambda: F.local_mmd(X, Y, torch.zeros(3, dtype=torch.int64), torch.ones(3, 2)),
            "probabilities must have shape \\(4, classes\\)",
        ),
        (
            lambda: F.local_mmd(X, Y, torch.full((3,), 2), torch.ones(4, 2)),
            "labels must be from 0 to 1, as probabilities has 2 columns",
        ),
        (
            lambda: F.local_mmd(X, Y, -torch.ones(3, 2), torch.ones(4, 2)),
            "labels must hold numbers from 0 up",
        ),
        (
            lambda: F.local_mmd(X, Y, torch.ones(3, 2), -torch.ones(4, 2)),
            "probabilities must hold numbers from 0 up, got -1",
        ),
        (lambda: F.local_mmd(X, Y, torch.ones(3, 4), torch.ones(4, 2)), "labels must have shape \\(3,\\) or"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
