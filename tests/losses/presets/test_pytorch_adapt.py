"""pytorch-adapt's MMD losses and their stand-ins."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.pytorch_adapt import CORALLoss, MMDBatchedLoss, MMDLoss

SCALES = [1, 0.3, torch.tensor([0.25, 1.0, 4.0]), 2.0 ** torch.linspace(-8, 8, 33)]
every_scale = pytest.mark.parametrize("scales", SCALES, ids=["1", "0.3", "3", "33"])
every_bandwidth = pytest.mark.parametrize("bandwidth", [None, 5.0])


@pytest.fixture(scope="module")
def library():
    """It pins an old pytorch-metric-learning, so the extra ``peers`` cannot bring it."""
    try:
        return importlib.import_module("pytorch_adapt.layers")
    except ModuleNotFoundError as error:
        pytest.skip(
            f"{error.name} is not installed, nothing is compared with pytorch-adapt "
            "(pip install --no-deps pytorch-adapt torchmetrics lightning-utilities)"
        )


def two_samples(n, m, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, torch.randn(m, features, generator=generator) * 1.3 + 0.4


def test_arguments(library):
    peers.assert_same_arguments(MMDLoss.__init__, library.MMDLoss.__init__)
    peers.assert_same_arguments(MMDLoss.forward, library.MMDLoss.forward)
    peers.assert_same_arguments(MMDBatchedLoss.__init__, library.MMDBatchedLoss.__init__)
    peers.assert_same_arguments(MMDBatchedLoss.forward, library.MMDBatchedLoss.forward)
    peers.assert_same_arguments(CORALLoss.forward, library.CORALLoss.forward)


@every_bandwidth
@every_scale
@pytest.mark.parametrize("size", [(3, 2, 3), (5, 9, 4), (36, 20, 8)])
def test_quadratic(library, size, scales, bandwidth):
    options = {"kernel_scales": scales, "mmd_type": "quadratic", "bandwidth": bandwidth}
    peers.assert_same(
        MMDLoss(**options),
        lambda x, y: library.MMDLoss(**options)(x, y),
        *two_samples(*size),
        rtol=1e-4,
        atol=1e-5,
    )


@every_bandwidth
@every_scale
@pytest.mark.parametrize("rows", [3, 9, 36])
def test_linear(library, rows, scales, bandwidth):
    options = {"kernel_scales": scales, "bandwidth": bandwidth}
    peers.assert_same(
        MMDLoss(**options),
        lambda x, y: library.MMDLoss(**options)(x, y),
        *two_samples(rows, rows, 5),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("mmd_type", ["linear", "quadratic"])
@every_scale
def test_lists_of_features_are_joint(library, scales, mmd_type):
    options = {"kernel_scales": scales, "mmd_type": mmd_type}

    def of(loss):
        return lambda x1, x2, y1, y2: loss(**options)([x1, x2], [y1, y2])

    (x1, y1), (x2, y2) = two_samples(12, 12, 5), two_samples(12, 12, 3, 1)
    inputs = x1, x2, y1, y2
    peers.assert_same(of(MMDLoss), of(library.MMDLoss), *inputs, rtol=1e-4, atol=1e-5)


@every_bandwidth
@every_scale
@pytest.mark.parametrize("batch_size", [4, 7, 1024])
def test_batched(library, batch_size, scales, bandwidth):
    options = {"kernel_scales": scales, "mmd_type": "quadratic", "bandwidth": bandwidth}
    peers.assert_same(
        MMDBatchedLoss(batch_size, **options),
        lambda x, y: library.MMDBatchedLoss(batch_size, **options)(x, y),
        *two_samples(21, 16, 5),
        rtol=1e-4,
        atol=1e-5,
    )


def test_coral(library):
    peers.assert_same(CORALLoss(), library.CORALLoss(), *two_samples(21, 16, 5))


def test_without_the_library():
    """Its formula, for one kernel and a given b."""
    x, y = (s.double() for s in two_samples(7, 5, 3))
    k = lambda u, v: torch.exp(-0.5 * torch.cdist(u, v) ** 2 / 4)
    off = lambda values: (values.sum() - values.trace()) / (len(values) * (len(values) - 1))
    expected = off(k(x, x)) + off(k(y, y)) - 2 * k(x, y).mean()
    for loss in (MMDLoss, MMDBatchedLoss):
        got = loss(kernel_scales=0.5, mmd_type="quadratic", bandwidth=4.0)(x, y)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1100, 1101])
def test_the_median_of_many_rows(rows, dtype):
    """It is torch's of all entries of the matrix, the zeros of its diagonal included."""
    x, y = (s.to(dtype) for s in two_samples(rows, 30, 3))
    d2 = torch.cdist(x.double(), x.double()).square().fill_diagonal_(0)
    expected = MMDLoss(mmd_type="quadratic", bandwidth=d2.median().item())(x, y)
    torch.testing.assert_close(MMDLoss(mmd_type="quadratic")(x, y), expected, rtol=1e-5, atol=1e-6)
    for name in ("_median", "_median_of"):
        got = getattr(MMDLoss(), name)(x)
        torch.testing.assert_close(got.double(), d2.median(), rtol=1e-5, atol=0)


def test_joint_quadratic_stores_no_matrix():
    (x1, y1), (x2, y2) = two_samples(1500, 1400, 5), two_samples(1500, 1400, 3, 1)
    inputs, kept = [z.requires_grad_() for z in (x1, x2, y1, y2)], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        MMDLoss(mmd_type="quadratic")(inputs[:2], inputs[2:])
    assert sum(kept) < 1e6  # of the 34 MB of the matrix


def test_half_precision_gives_float32():
    x, y = (s.bfloat16() for s in two_samples(8, 8, 6))
    for mmd_type in ("linear", "quadratic"):
        assert MMDLoss(mmd_type=mmd_type)(x, y).dtype == torch.float32
        assert MMDLoss(mmd_type=mmd_type)([x], [y]).dtype == torch.float32


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MMDLoss(mmd_type="cubic"), "mmd_type must be one of"),
        (lambda: MMDLoss(dist_func=torch.cdist), "dist_func is supported at None only"),
        (lambda: MMDLoss(kernel_scales=0), "kernel_scales must be positive"),
        (lambda: MMDLoss(bandwidth=-1.0), "bandwidth must be positive"),
        (lambda: MMDLoss()(X, X[:3]), "x and y must have the same batch size"),
        (lambda: MMDLoss()(X, X), "bandwidth must be given where the median .* is not positive: it is 0.0"),
        (lambda: MMDLoss()(X[:1], X[:1]), "x must have at least 2 rows, got 1"),
        (lambda: MMDLoss()([X], X), "x and y must be two tensors, or two lists of as many"),
        (lambda: MMDLoss()([X, X], [X]), "two lists of as many"),
        (lambda: MMDBatchedLoss(), "mmd_type must be 'quadratic', got 'linear'"),
        (lambda: MMDBatchedLoss(0, mmd_type="quadratic"), "batch_size must be an integer"),
        (lambda: MMDBatchedLoss(mmd_type="quadratic")([X], [X]), "must be tensors, got lists"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
