"""The stand-ins for DeepDA, which is no package: its formulas, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses import oracle
from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.deepda import CORAL, LMMDLoss, MMDLoss


def two_samples(n, m, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, torch.randn(m, features, generator=generator) * 1.3 + 0.4


def kernels(source, target, multiplier, count):
    """exp(-d^2 / b), b being the mean of the squared distances of distinct rows times powers."""
    z = torch.cat((source, target))
    d2 = ((z[None] - z[:, None]) ** 2).sum(2)
    mean = d2.detach().sum() / (len(z) * (len(z) - 1))
    return sum(torch.exp(-d2 / (mean * multiplier ** (i - count // 2))) for i in range(count))


def mmd(source, target, multiplier, count):
    k, n = kernels(source, target, multiplier, count), len(source)
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()


@pytest.mark.parametrize(("multiplier", "count"), [(2.0, 5), (3.0, 4), (2.0, 1)])
@pytest.mark.parametrize("size", [(1, 1, 3), (5, 8, 4), (36, 36, 20)])
def test_mmd(size, multiplier, count):
    loss = MMDLoss(kernel_mul=multiplier, kernel_num=count)
    peers.assert_same(loss, lambda s, t: mmd(s, t, multiplier, count), *two_samples(*size), atol=1e-5)


def test_defaults():
    samples = two_samples(9, 9, 5)
    torch.testing.assert_close(MMDLoss()(*samples), MMDLoss("rbf", 2.0, 5, None)(*samples), rtol=0, atol=0)
    MMDLoss(max_iter=5, num_class=3)  # other losses' options, which its callers hand to all of them


def test_linear_mmd():
    peers.assert_same(
        MMDLoss(kernel_type="linear"),
        lambda s, t: (s.mean(0) - t.mean(0)) @ (s.mean(0) - t.mean(0)),
        *two_samples(9, 7, 5),
    )


@pytest.mark.parametrize("size", [(2, 2, 3), (5, 8, 4), (36, 36, 20)])
def test_coral(size):
    def expected(s, t):
        of_s, of_t = (x - x.mean(0) for x in (s, t))
        difference = of_s.t() @ of_s / (len(s) - 1) - of_t.t() @ of_t / (len(t) - 1)
        return (difference**2).sum() / (4 * s.shape[1] ** 2)

    peers.assert_same(lambda s, t: CORAL(s, t, num_class=3), expected, *two_samples(*size))


def lmmd(source, target, labels, probabilities, multiplier, count):
    """Zhu et al. 2020, eq. 7, summed over the classes that both batches have, over their number."""
    k, n = kernels(source, target, multiplier, count), len(source)
    total, common = 0.0, 0
    for c in range(probabilities.shape[1]):
        of_source = (labels == c).to(k)
        if not of_source.any() or c not in probabilities.argmax(1):
            continue
        common += 1
        w_s, w_t = of_source / of_source.sum(), probabilities[:, c] / probabilities[:, c].sum()
        for i in range(n):
            for j in range(n):
                total = total + w_s[i] * w_s[j] * k[i, j]
        for i in range(len(target)):
            for j in range(len(target)):
                total = total + w_t[i] * w_t[j] * k[n + i, n + j]
        for i in range(n):
            for j in range(len(target)):
                total = total - 2 * w_s[i] * w_t[j] * k[i, n + j]
    return total / max(common, 1)


def lmmd_batch(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return labels, (2 * torch.randn(n, classes, generator=generator)).softmax(1)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("rows", [4, 11])
def test_lmmd(rows, classes):
    source, target = two_samples(rows, rows, 5)
    labels, probabilities = lmmd_batch(rows, classes)

    def ours(s, t):
        loss = LMMDLoss(classes, gamma=2.0, max_iter=10)
        loss.curr_iter = 4
        return loss(s, t, labels, probabilities.to(s))

    factor = 2 / (1 + math.exp(-2.0 * 0.4)) - 1
    peers.assert_same(
        ours,
        lambda s, t: (factor * lmmd(s, t, labels, probabilities.to(s), 2.0, 5)).reshape(1),
        source,
        target,
        atol=1e-5,
    )


def test_lmmd_goes_on_with_its_schedule():
    loss = LMMDLoss(3, max_iter=2)
    source, target = two_samples(6, 6, 5)
    values = [loss(source, target, *lmmd_batch(6, 3)).item() for _ in range(4)]
    assert values[0] == 0
    assert values[1] / values[2] == pytest.approx(
        (2 / (1 + math.exp(-0.5)) - 1) / (2 / (1 + math.exp(-1)) - 1)
    )
    assert values[3] == values[2]
    assert loss(source, target, *lmmd_batch(6, 3)).shape == (1,)


def test_lmmd_without_a_common_class_is_0():
    loss = LMMDLoss(2)
    loss.step()
    samples = [x.requires_grad_() for x in two_samples(4, 4, 3)]
    probabilities = torch.tensor([[0.1, 0.9]]).repeat(4, 1)
    value = loss(*samples, torch.zeros(4, dtype=torch.int64), probabilities)
    assert value.item() == 0
    value.sum().backward()
    assert torch.equal(samples[0].grad, torch.zeros(4, 3))


def test_lmmd_of_what_is_no_number_is_0():
    loss = LMMDLoss(2)
    loss.step()
    source, target = two_samples(4, 4, 3)
    source[0, 0] = torch.nan
    source.requires_grad_()
    value = loss(source, target, *lmmd_batch(4, 2))
    assert value.item() == 0
    value.sum().backward()
    assert torch.equal(source.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_any_scale(scale):
    source, target = (x * scale for x in two_samples(20, 16, 200))
    labels, probabilities = lmmd_batch(20, 3)[0], lmmd_batch(16, 3)[1]

    def local(s, t):
        loss = LMMDLoss(3)
        loss.curr_iter = 500
        return loss(s, t, labels, probabilities.to(s))

    for loss in (MMDLoss(), local):
        expected = loss(source.double(), target.double())
        torch.testing.assert_close(loss(source, target).double(), expected, rtol=1e-5, atol=1e-6)


def test_lmmd_stores_no_matrix():
    source, target = (x.requires_grad_() for x in two_samples(1500, 1500, 4))
    loss, kept = LMMDLoss(3), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        loss(source, target, lmmd_batch(1500, 3)[0], lmmd_batch(1500, 3)[1])
    assert sum(kept) < 1e6  # of the 36 MB of the matrix


def test_half_precision_gives_float32():
    samples = two_samples(8, 8, 6)
    oracle.assert_half_precision_is_lifted(MMDLoss(), *samples)
    loss = LMMDLoss(3)
    loss.step()
    assert loss(*(x.half() for x in samples), *lmmd_batch(8, 3)).dtype == torch.float32


X = torch.zeros(3, 2)
L = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MMDLoss("poly"), "kernel_type must be one of"),
        (lambda: MMDLoss(fix_sigma=1.0), "fix_sigma is supported at None only, got 1.0"),
        (lambda: MMDLoss(kernel_num=0), "kernel_num must be an integer"),
        (lambda: MMDLoss()(X, X[:, :1]), "number of features"),
        (lambda: MMDLoss()(X, X[:0]), "y must have at least 1 rows"),
        (lambda: MMDLoss("linear")(X, X[:0]), "at least 1 row"),
        (lambda: LMMDLoss(2, "linear"), "kernel_type is supported at 'rbf' only"),
        (lambda: LMMDLoss(2)(X, X, L, X[:, :1]), r"target_logits must have shape \(3, 2\)"),
        (lambda: LMMDLoss(2)(X, X, L[:2], X), r"source_label must have shape \(3,\)"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
