"""InfoNCE with further negatives against loops over the logits of each row in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses import InfoNCELoss, NegativeQueue
from thawkit.losses import functional as F

KINDS = ["shared", "paired"]


def batch(rows, count, kind, features=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, features, generator=generator)
    k = q + torch.randn(rows, features, generator=generator)
    shape = (count, features) if kind == "shared" else (rows, count, features)
    return q, k, torch.randn(shape, generator=generator)


def definition(q, k, negatives, scale, in_batch, normalized=True, reduction="mean"):
    if normalized:
        q, k, negatives = (x / x.norm(dim=-1, keepdim=True) for x in (q, k, negatives))
    rows = []
    for i in range(len(q)):
        own = negatives if negatives.dim() == 2 else negatives[i]
        keys = [k[i], *own]
        if in_batch:
            keys += [k[j] for j in range(len(k)) if j != i]
        logits = torch.stack([scale * q[i].dot(key) for key in keys])
        rows.append(logits.logsumexp(0) - logits[0])
    rows = torch.stack(rows)
    return rows if reduction == "none" else getattr(rows, reduction)()


def loss(in_batch=True, normalized=True, reduction="mean"):
    return lambda q, k, negatives, scale: F.info_nce(
        q,
        k,
        negatives=negatives,
        in_batch=in_batch,
        logit_scale=scale,
        normalize=normalized,
        reduction=reduction,
    )


SCALE = torch.tensor(5.0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 4), (5, 1), (7, 9)])
def test_info_nce_with_negatives_is_its_definition(rows, count, kind, in_batch, normalized, reduction):
    options = in_batch, normalized, reduction
    oracle.assert_is(
        loss(*options),
        lambda *x: definition(*x, *options),
        *batch(rows, count, kind),
        SCALE if normalized else torch.tensor(0.4),
    )


@pytest.mark.parametrize("scale", [100.0, -20.0, 0.0])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saturated(kind, in_batch, scale):
    q, k, negatives = batch(9, 6, kind)
    k[:4] = q[:4]
    k[5] = q[6]
    negatives[..., 2, :] = k[7]
    oracle.assert_is(
        loss(in_batch, True, "none"),
        lambda *x: definition(*x, in_batch, True, "none"),
        q,
        k,
        negatives,
        torch.tensor(scale),
    )


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dominating_positive_keeps_its_digits(kind, in_batch):
    q = torch.eye(4)
    negatives = torch.zeros(3, 4) if kind == "shared" else torch.zeros(4, 3, 4)
    value = F.info_nce(q, q, negatives=negatives, in_batch=in_batch, logit_scale=30.0, normalize=False)
    assert value.item() == pytest.approx(math.log1p((6 if in_batch else 3) * math.exp(-30)), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_negatives(kind):
    q, k, negatives = batch(5, 0, kind)
    got = oracle.values_and_gradients(loss(), q, k, negatives, SCALE)
    expected = oracle.values_and_gradients(lambda q, k, s: F.info_nce(q, k, logit_scale=s), q, k, SCALE)
    torch.testing.assert_close([*got[:3], got[4]], expected)
    alone, *gradients = oracle.values_and_gradients(loss(in_batch=False), q, k, negatives, SCALE)
    assert alone.item() == 0
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind, in_batch):
    q, k, negatives = (x.requires_grad_() for x in batch(0, 3, kind))
    assert loss(in_batch, reduction="none")(q, k, negatives, SCALE).shape == (0,)
    value = loss(in_batch, reduction="sum")(q, k, negatives, SCALE)
    assert value.item() == 0
    assert not torch.autograd.grad(value, negatives)[0].any()


def test_keys_past_the_rows_stay_negatives():
    q, k, negatives = batch(5, 4, "paired")
    extra = torch.randn(3, 8)
    got = loss()(q, torch.cat((k, extra)), negatives, SCALE)
    joined = torch.cat((negatives, extra.expand(5, 3, 8)), 1)
    torch.testing.assert_close(got, loss()(q, k, joined, SCALE))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_negatives(kind):
    q, k, negatives = batch(5, 4, kind)
    loss()(q.requires_grad_(), k, negatives, 5.0).backward()
    assert q.grad.any()
    assert k.grad is None
    assert negatives.grad is None


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_twice_differentiable(kind, in_batch):
    for reduction in ("mean", "none"):
        oracle.assert_differentiable_twice(loss(in_batch, True, reduction), *batch(3, 2, kind, 3), SCALE)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_keeps_to_what_all_losses_do(kind, in_batch):
    inputs = (*batch(9, 4, kind), torch.tensor(4.0))
    oracle.assert_layout_does_not_matter(loss(in_batch), *inputs)
    oracle.assert_autocast_changes_nothing(loss(in_batch), *inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, in_batch, dtype):
    inputs = [x.to(dtype) for x in batch(9, 4, kind)]
    value, *gradients = oracle.values_and_gradients(loss(in_batch), *inputs, SCALE)
    expected = oracle.values_and_gradients(loss(in_batch), *(x.float() for x in inputs), SCALE)
    assert [value.dtype, *(x.dtype for x in gradients)] == [torch.float32, dtype, dtype, dtype, torch.float32]
    torch.testing.assert_close(value, expected[0], rtol=1e-3, atol=1e-3)
    for a, b in zip(gradients, expected[1:], strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("kind", "in_batch", "backend"),
    [(kind, in_batch, "aot_eager") for kind in KINDS for in_batch in (True, False)]
    + [("paired", True, "inductor")],
)
def test_compiles(kind, in_batch, backend):
    oracle.assert_compiles(loss(in_batch), *batch(9, 4, kind), SCALE, backend=backend)


def test_the_queue_without_the_batch_is_mocos_loss():
    q, k, _ = batch(6, 0, "shared")
    queue = NegativeQueue(16, 8)
    queue.enqueue(torch.randn(10, 8))
    got = InfoNCELoss(0.2, in_batch=False)(q, k, queue.negatives())
    unit_q, unit_k, unit_queue = (normalize(x) for x in (q, k, queue.negatives()))
    logits = torch.cat(((unit_q * unit_k).sum(1, keepdim=True), unit_q @ unit_queue.T), 1) / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(got, expected)


def test_module_calls_the_function():
    q, k, negatives = batch(6, 3, "paired")
    module = InfoNCELoss(2.0, normalize=False, reduction="none")
    assert not module.state_dict()
    torch.testing.assert_close(module(q, k, negatives), loss(True, False, "none")(q, k, negatives, 0.5))


Q = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("k", "negatives", "options", "says"),
    [
        (Q, None, {"in_batch": False}, "negatives must be given where in_batch is false"),
        (Q, [1.0], {}, "negatives must be a tensor, got list"),
        (Q, Q.int(), {}, "negatives must be float32"),
        (Q, Q[0], {}, r"negatives must have shape \(M, 4\) or \(3, M, 4\), got \(4,\)"),
        (Q, torch.zeros(5, 3), {}, r"negatives must have shape \(M, 4\) or \(3, M, 4\), got \(5, 3\)"),
        (Q, torch.zeros(2, 5, 4), {}, r"negatives must have shape .* got \(2, 5, 4\)"),
        (Q, Q.double(), {}, "negatives must have the dtype of q"),
        (Q, Q.to("meta"), {}, "negatives is on meta"),
        (torch.zeros(5, 4), Q, {"in_batch": False}, "k must have as many rows as q"),
        (Q[:2], Q, {}, "k must have at least as many rows as q"),
        (Q[:2], torch.zeros(3, 5, 4), {}, "k must have at least as many rows as q"),
        (Q, torch.zeros(3, 5, 4), {"logit_scale": math.inf}, "logit_scale must be finite"),
        (Q, torch.zeros(3, 5, 4), {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_input(k, negatives, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.info_nce(Q, k, negatives=negatives, **options)


def test_nothing_to_take_the_mean_of():
    with pytest.raises(ThawkitError, match="q has no rows"):
        F.info_nce(Q[:0], Q[:0], negatives=torch.zeros(0, 2, 4))
