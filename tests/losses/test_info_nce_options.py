"""InfoNCE's options against explicit matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.losses import oracle
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

SCALE = torch.tensor(6.0)


def batch(rows=40, extra=15, features=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, features, generator=generator)
    k = torch.randn(rows + extra, features, generator=generator)
    k[:rows] += q
    return q, k


def logits_of(q, k, scale):
    return scale * normalize(q, dim=1) @ normalize(k, dim=1).T


def masked(q, k, scale, out):
    own = torch.eye(*out.shape, dtype=torch.bool)
    logits = logits_of(q, k, scale).masked_fill(out & ~own, -torch.inf)
    return logits.logsumexp(1) - logits.diagonal()


def assert_equal(function, definition, *inputs, upstream=True):
    got = oracle.values_and_gradients(function, *inputs)
    truth = oracle.values_and_gradients(definition, *(x.double() for x in inputs))
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


LABELS = torch.arange(55) % 7


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_keys_of_the_own_label_are_no_negatives(reduction):
    def definition(q, k, s):
        rows = masked(q, k, s, LABELS[:40, None] == LABELS)
        return rows if reduction == "none" else getattr(rows, reduction)()

    loss = lambda q, k, s: F.info_nce(q, k, logit_scale=s, labels=LABELS, reduction=reduction)
    assert_equal(loss, definition, *batch(), SCALE)
    oracle.assert_compiles(loss, *batch(), SCALE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scale", [0.0, -7.0, -300.0, 300.0])
@pytest.mark.parametrize("margin", [0.0, 0.1, -0.3])
def test_a_margin_is_one_of_similarities_whatever_the_scale(margin, scale, normalized, backend):
    q, k = batch()
    k[41:45] = q[3:7]

    def definition(q, k, s):
        if normalized:
            q, k = normalize(q), normalize(k)
        similarity = q @ k.t()
        own = torch.eye(*similarity.shape, dtype=torch.bool)
        out = (similarity > (similarity.diagonal() + margin)[:, None]) & ~own
        logits = (s * similarity).masked_fill(out, -torch.inf)
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(q)), reduction="none")

    def loss(q, k, s):
        with ops.use_backend(backend):
            return F.info_nce(
                q, k, logit_scale=s, normalize=normalized, false_negative_margin=margin, reduction="none"
            )

    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = q, k, torch.tensor(scale)
    got = oracle.values_and_gradients(loss, *(x.to(dtype) for x in inputs))
    truth = oracle.values_and_gradients(definition, *(x.double() for x in inputs))
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5 * b.abs().max().clamp_min(1).item())


@pytest.mark.parametrize("margin", [0.0, 0.1, -0.3])
def test_false_negatives_beyond_a_margin_do_not_count(margin):
    def definition(q, k, s):
        similarity = logits_of(q, k, 1.0)
        return masked(q, k, s, similarity > (similarity.diagonal() + margin)[:, None]).mean()

    q, k = batch()
    k[41:45] = q[3:7]
    assert_equal(
        lambda q, k, s: F.info_nce(q, k, logit_scale=s, false_negative_margin=margin), definition, q, k, SCALE
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sample_weights(reduction):
    weight = torch.linspace(0, 2, 40)

    def definition(q, k, s, w):
        rows = w * masked(q, k, s, torch.zeros(40, 55, dtype=torch.bool))
        return rows if reduction == "none" else rows.sum() / (w.sum() if reduction == "mean" else 1)

    loss = lambda q, k, s, w: F.info_nce(q, k, logit_scale=s, sample_weight=w, reduction=reduction)
    assert_equal(loss, definition, *batch(), SCALE, weight)


FORMS = {
    "plain": {},
    "hard": {"hard_negative_beta": 0.5},
    "shared": {"negatives": torch.randn(3, 4)},
    "queue": {"negatives": torch.randn(3, 4), "in_batch": False},
    "paired": {"negatives": torch.randn(5, 3, 4)},
    "paired only": {"negatives": torch.randn(5, 3, 4), "in_batch": False},
    "soft": {"soft_targets": torch.rand(5, 5).softmax(1)},
}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_row_of_weight_0_has_no_gradient_whatever_it_holds(form, wrong, reduction):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5])

    def gradients(q, form):
        of = {"q": q, "k": k, "sample_weight": weight, **form}
        leaves = {name: x.clone().requires_grad_() for name, x in of.items() if isinstance(x, torch.Tensor)}
        loss = F.info_nce(**{**of, **leaves}, reduction=reduction)
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return loss.detach(), dict(zip(leaves, found, strict=True))

    loss, expected = gradients(q, form)
    broken = q.clone()
    broken[2] = wrong
    own = {name: x.clone() for name, x in form.items() if isinstance(x, torch.Tensor) and len(x) == 5}
    for x in own.values():
        x[2] = wrong
    got_loss, got = gradients(broken, {**form, **own})
    torch.testing.assert_close(got_loss, loss)
    assert not got["q"][2].any()
    # what a weight that is not 0 would cost is known of rows of numbers only
    expected["sample_weight"] = expected["sample_weight"].index_fill(0, torch.tensor(2), 0)
    got["sample_weight"] = got["sample_weight"].index_fill(0, torch.tensor(2), 0)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_hard_negatives_weigh_more(beta, labels):
    def definition(q, k, s):
        logits = logits_of(q, k, s)
        negative = ~torch.eye(40, 55, dtype=torch.bool)
        if labels is not None:
            negative &= labels[:40, None] != labels
        weight = (beta * logits).exp() * negative
        hard = (logits.exp() * weight).sum(1) * negative.sum(1) / weight.sum(1)
        return (1 + hard / logits.diagonal().exp()).log().mean()

    loss = lambda q, k, s: F.info_nce(q, k, logit_scale=s, hard_negative_beta=beta, labels=labels)
    assert_equal(loss, definition, *batch(), SCALE)
    lonely = F.info_nce(
        *batch(1, 0),
        logit_scale=SCALE,
        hard_negative_beta=beta,
        labels=None if labels is None else LABELS[:1],
    )
    assert lonely.item() == 0  # no negatives


def test_soft_targets_get_a_gradient():
    def definition(q, k, s, t):
        return -(t * logits_of(q, k, s).log_softmax(1)).sum(1).mean()

    targets = torch.rand(40, 55).softmax(1)
    assert_equal(
        lambda q, k, s, t: F.info_nce(q, k, logit_scale=s, soft_targets=t),
        definition,
        *batch(),
        SCALE,
        targets,
    )


def test_statistics_are_those_of_the_logits():
    q, k = batch()
    loss, statistics = F.info_nce_statistics(q, k, logit_scale=SCALE)
    logits = logits_of(q, k, SCALE)
    torch.testing.assert_close(loss, F.info_nce(q, k, logit_scale=SCALE))
    torch.testing.assert_close(statistics.log_sum_exp, logits.logsumexp(1))
    assert torch.equal(statistics.top1, logits.argmax(1) == torch.arange(40))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": torch.zeros(3)}, "labels must hold integers"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels must have shape"),
        ({"false_negative_margin": float("nan")}, "false_negative_margin must be finite"),
        ({"sample_weight": torch.ones(3)}, "sample_weight must have shape"),
        ({"hard_negative_beta": -1.0}, "hard_negative_beta must be above 0"),
        ({"soft_targets": torch.ones(3, 3)}, "soft_targets must have shape"),
        (
            {"soft_targets": torch.ones(40, 55), "labels": LABELS},
            "soft_targets cannot be combined with labels",
        ),
        ({"negatives": torch.ones(2, 8), "labels": LABELS}, "negatives cannot be combined with labels"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ThawkitError, match=says):
        F.info_nce(*batch(), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_with_hard_negatives_are_rounded_to_half_precision_once(dtype):
    q, k = (x.to(dtype) for x in batch()[:2])
    loss = lambda q, k: F.info_nce(q, k, logit_scale=0.5, hard_negative_beta=0.7, normalize=False)
    half = oracle.values_and_gradients(loss, q, k)[1:]
    single = oracle.values_and_gradients(loss, q.float(), k.float())[1:]
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(half, single, strict=True))
