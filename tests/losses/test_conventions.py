"""What all losses keep to: devices and dtypes of their surroundings, tracing, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit import losses, ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

torch.manual_seed(0)
Q, K, W = torch.randn(6, 4), torch.randn(6, 4), torch.randn(5, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SHARED = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [1, 1]])
LINES = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)).softmax(1)

LOSSES = {
    "info_nce": lambda q, k: F.info_nce(q, k),
    "margin": lambda q, k: F.info_nce(q, k, false_negative_margin=0.1),
    "hard": lambda q, k: F.info_nce(q, k, hard_negative_beta=0.5),
    "soft": lambda q, k: F.info_nce(q, k, soft_targets=TARGETS.to(q.device)),
    "negatives": lambda q, k: F.info_nce(q, k, negatives=k.flip(0), in_batch=False),
    "clip": lambda q, k: F.clip(q, k),
    "siglip": lambda q, k: F.siglip(q, k),
    "nt_xent": lambda q, k: F.nt_xent(q, k),
    "supcon": lambda q, k: F.supcon(q, LABELS.to(q.device)),
    "supcon in": lambda q, k: F.supcon(q, LABELS.to(q.device), variant="in"),
    "supcon shared": lambda q, k: F.supcon(q, SHARED.to(q.device)),
    "nt_xent labels": lambda q, k: F.nt_xent_labels(q, LABELS.to(q.device)),
    "nt_xent ref": lambda q, k: F.nt_xent_labels(
        q, LABELS.to(q.device), ref=k, ref_labels=LABELS.flip(0).to(q.device)
    ),
    "supcon ref": lambda q, k: F.supcon(q, LABELS.to(q.device), ref=k, ref_labels=LABELS.to(q.device)),
    "ranking": lambda q, k: F.multiple_negatives_ranking(q, k),
    "ranking both": lambda q, k: F.multiple_negatives_ranking(
        q,
        k,
        directions=("query_to_doc", "doc_to_query"),
        hardness_mode="in_batch_negatives",
        hardness_strength=1.0,
    ),
    "triplet": lambda q, k: F.triplet_margin(q, LABELS.to(q.device)),
    "triplet ref": lambda q, k: F.triplet_margin(
        q, LABELS.to(q.device), ref=k, ref_labels=LABELS.to(q.device)
    ),
    "contrastive": lambda q, k: F.contrastive(q, LABELS.to(q.device)),
    "cosine": lambda q, k: F.cosine_contrastive(q, k, torch.ones(6, device=q.device)),
    "classes": lambda q, k: F.linear_cross_entropy(q, k, LABELS.to(q.device), label_smoothing=0.1),
    "probabilities": lambda q, k: F.linear_cross_entropy(q, k, TARGETS.to(q.device)),
    "mmd": lambda q, k: F.mmd(q, k),
    "coral": lambda q, k: F.coral(q, k),
    "cmd": lambda q, k: F.cmd(q, k),
    "sliced wasserstein": lambda q, k: F.sliced_wasserstein(q, k, projections=LINES.to(q.device)),
    "sigmoid focal": lambda q, k: F.sigmoid_focal_loss(q, K.to(q).sigmoid(), reduction="mean"),
    "sigmoid focal options": lambda q, k: F.sigmoid_focal_loss(
        q,
        LABELS.to(q.device),
        K.to(q)[0].sigmoid(),
        reduction="mean",
        pos_weight=2.0,
        ignore_index=1,
        normalizer="positives",
    ),
    "focal": lambda q, k: F.focal_loss(q, LABELS.to(q.device), label_smoothing=0.1),
    "focal probabilities": lambda q, k: F.focal_loss(q, K.to(q).softmax(1)),
    "cross_entropy": lambda q, k: F.cross_entropy(q, LABELS.to(q.device), K.to(q)[0].exp()),
    "binary cross-entropy": lambda q, k: F.binary_cross_entropy_with_logits(q, K.to(q).sigmoid()),
    "class balanced": lambda q, k: F.class_balanced_loss(q, LABELS.to(q.device), [9, 5, 3, 1], loss="focal"),
    "ldam": lambda q, k: F.ldam_loss(q, LABELS.to(q.device), [9, 5, 3, 1]),
    "logit adjusted": lambda q, k: F.logit_adjusted_loss(q, LABELS.to(q.device), [9, 5, 3, 1]),
    "mmd laplace": lambda q, k: F.mmd(q, k, kernel="laplace", bandwidths="median"),
    "mmd imq": lambda q, k: F.mmd(q, k, kernel="imq", bandwidths=torch.tensor([1.0, 2.0], device=q.device)),
    "mmd energy": lambda q, k: F.mmd(q, k, kernel="energy", estimator="unbiased"),
    "mmd means": lambda q, k: F.mmd(q, k, kernel="linear", estimator="unbiased"),
    "mmd poly": lambda q, k: F.mmd(q, k, kernel="poly"),
    "mmd weights": lambda q, k: F.mmd(q, k, weights=(TARGETS[0].to(q.device), TARGETS[1].to(q.device))),
    "mmd classes": lambda q, k: F.mmd(
        q, k, class_conditional=(LABELS.to(q.device), LABELS.flip(0).to(q.device)), estimator="unbiased"
    ),
    "mmd pairs": lambda q, k: F.mmd(q, k, estimator="linear"),
    "mmd blocks": lambda q, k: F.mmd(q, k, estimator="block"),
    "joint mmd": lambda q, k: F.joint_mmd([q, q[:, :2]], [k, k[:, :2]], kernel=["rbf", "imq"]),
    "local mmd": lambda q, k: F.local_mmd(q, k, LABELS.to(q.device), TARGETS.to(q.device)),
}

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gradients(loss, q=Q, k=K):
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    value = loss(q, k)
    return value.detach(), *torch.autograd.grad(value, (q, k), allow_unused=True, materialize_grads=True)


@every_loss
def test_default_device_and_dtype_change_nothing(loss):
    expected = gradients(loss)
    with torch.device("meta"):
        got = gradients(loss)
    torch.set_default_dtype(torch.float64)
    try:
        again = gradients(loss)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b, c in zip(expected, got, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.dtype == c.dtype == torch.float32


@every_loss
def test_tensors_without_numbers(loss):
    value = loss(*(x.to("meta").requires_grad_() for x in (Q, K)))
    assert value.is_meta
    assert value.shape == ()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        q, k = (mode.from_tensor(x).requires_grad_() for x in (Q, K))
        loss(q, k).backward()
        assert q.grad.shape == Q.shape


@every_loss
def test_vmap(loss):
    both = torch.func.vmap(loss)(torch.stack((Q, 2 * K)), torch.stack((K, Q)))
    torch.testing.assert_close(both, torch.stack((loss(Q, K), loss(2 * K, Q))))


@every_loss
def test_activation_checkpointing_changes_nothing(loss):
    again = gradients(lambda q, k: checkpoint(loss, q, k, use_reentrant=False))
    for a, b in zip(again, gradients(loss), strict=True):
        assert torch.equal(a, b)


# They call one operator twice, at which dynamo of torch 2.14 fails an assertion of its own if all sizes are
# to be dynamic. Sizes that only turn out to change are no problem.
TWICE = ("hard", "supcon in", "ranking both")


ONCE = {name: loss for name, loss in LOSSES.items() if name not in TWICE}


@pytest.mark.parametrize("loss", ONCE.values(), ids=ONCE)
def test_compiles_for_any_size(loss):
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(gradients(compiled), gradients(loss), strict=True):
        torch.testing.assert_close(a, b)


@every_loss
def test_autocast_rounds_neither_kernels_nor_definitions(loss):
    expected = gradients(loss)
    for backend in (None, "reference"):
        q, k = Q.clone().requires_grad_(), K.clone().requires_grad_()
        with ops.use_backend(backend), torch.autocast("cpu"):
            value = loss(q, k)
        got = torch.autograd.grad(value, (q, k), allow_unused=True, materialize_grads=True)
        for a, b in zip((value, *got), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_loss
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_backward_pass_inside_autocast_rounds_nothing(loss, create_graph):
    """Where its graph is wanted, the definition's own products are rounded, as torch rounds such."""
    expected = gradients(loss)[1:]
    q, k = Q.clone().requires_grad_(), K.clone().requires_grad_()
    with torch.autocast("cpu"):
        got = torch.autograd.grad(
            loss(q, k), (q, k), allow_unused=True, materialize_grads=True, create_graph=create_graph
        )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a.detach() - b).abs().max() <= (2**-6 if create_graph else 1e-5) * b.abs().max()


@pytest.mark.parametrize("loss", [F.clip, F.siglip, F.info_nce], ids=lambda f: f.__name__)
def test_one_tensor_on_both_sides_compiles(loss):
    x = Q.clone().requires_grad_()
    compiled = torch.compile(lambda x: loss(x, x), fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(loss(x, x), x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: F.info_nce(Q, K, logit_scale=s),
        lambda s: F.info_nce(Q, K, false_negative_margin=s),
        lambda s: F.info_nce(Q, K, hard_negative_beta=s),
        lambda s: F.nt_xent(Q, K, temperature=s),
        lambda s: F.siglip(Q, K, logit_bias=s),
        lambda s: F.triplet_margin(Q, LABELS, margin=s),
        lambda s: F.linear_cross_entropy(Q, W, LABELS, label_smoothing=s),
    ],
    ids=["scale", "margin", "beta", "temperature", "bias", "distance", "smoothing"],
)
def test_numbers_may_change_between_calls_of_a_compiled_loss(loss):
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for number in (0.5, 0.6, 0.7):
        torch.testing.assert_close(compiled(number), loss(number))


@pytest.mark.parametrize("target", [7, -1, 10**9])
def test_a_compiled_loss_refuses_classes_that_there_are_not(target):
    compiled = torch.compile(F.linear_cross_entropy, backend="aot_eager")
    with pytest.raises(ThawkitError, match="target must be below the number of classes, 5"):
        compiled(Q, W, torch.full((6,), target))


def test_half_precision_weights_are_summed_in_single_precision():
    q, k = torch.randn(1000, 16), torch.randn(1000, 16)
    weight = torch.full((1000,), 100.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        got = F.info_nce(q, k, sample_weight=weight.to(dtype))
        torch.testing.assert_close(got, F.info_nce(q, k, sample_weight=weight))
        rows = F.info_nce(q, k, sample_weight=weight.to(dtype), reduction="none")
        assert rows.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"negatives": torch.randn(3, 4)},
        {"negatives": torch.randn(6, 3, 4)},
        {"negatives": torch.randn(3, 4), "in_batch": False},
        {"negatives": torch.randn(3, 4), "false_negative_margin": 0.1},
        {"hard_negative_beta": 0.5},
        {"soft_targets": TARGETS},
    ],
    ids=["shared", "paired", "queue", "margin", "hard", "soft"],
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_every_form_takes_weights(options, reduction):
    weight = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5, 1.0])
    rows = F.info_nce(Q, K, reduction="none", **options) * weight
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / weight.sum()}[reduction]
    got = F.info_nce(Q, K, reduction=reduction, sample_weight=weight, **options)
    torch.testing.assert_close(got, expected)


def test_a_margin_of_shared_negatives_is_that_of_more_keys():
    negatives = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    got = F.info_nce(Q, K, negatives=negatives, false_negative_margin=0.2)
    expected = F.info_nce(Q, torch.cat((K, negatives)), false_negative_margin=0.2)
    assert torch.equal(got, expected)


ANY = {"q": Q, "k": K}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: F.info_nce(**ANY, logit_scale=np.ones(2)), "logit_scale must be a number, got ndarray"),
        (lambda: F.info_nce(**ANY, logit_scale=10**400), "logit_scale must be finite"),
        (
            lambda: F.info_nce(**ANY, logit_scale=torch.tensor(torch.inf)),
            "logit_scale must be finite, got inf",
        ),
        (
            lambda: F.info_nce(**ANY, logit_scale=1e39),
            "logit_scale must be a finite number of float32, got 1e\\+39",
        ),
        (lambda: F.siglip(Q, K, logit_bias=-1e39), "logit_bias must be a finite number of float32"),
        (lambda: F.nt_xent(Q, K, temperature=1e-39), "temperature must be at least 2.94e-39"),
        (lambda: F.supcon(Q, LABELS, temperature=1e-39), "temperature must be at least 2.94e-39"),
        (lambda: F.triplet_margin(Q, LABELS, margin=1e39), "margin must be a finite number of float32"),
        (
            lambda: losses.InfoNCELoss(hard_negative_beta=-1.0),
            "hard_negative_beta must be at least 0, got -1",
        ),
        (lambda: F.supcon(Q, SHARED.cfloat()), "labels of shape .* must hold zeros and ones, got .*complex"),
        (
            lambda: F.supcon(Q, None, pair_weight=torch.ones(6, 6).cfloat()),
            "pair_weight must hold real numbers, got .*complex",
        ),
        (lambda: F.info_nce(**ANY, hard_negative_beta=torch.ones(2)), "hard_negative_beta must be a number"),
        (
            lambda: F.info_nce(**ANY, false_negative_margin=torch.ones(2)),
            "false_negative_margin must",
        ),
        (lambda: F.info_nce(Q.to_sparse(), K), "q must be a dense tensor, got layout torch.sparse_coo"),
        (lambda: F.info_nce(**ANY, normalize="no"), "normalize must be True or False, got 'no'"),
        (lambda: F.info_nce(**ANY, in_batch="no"), "in_batch must be True or False, got 'no'"),
        (lambda: F.clip(Q, K, normalize=1), "normalize must be True or False, got 1"),
        (lambda: F.info_nce(Q[:0], K, soft_targets=torch.ones(0, 6)), "q has no rows"),
        (
            lambda: F.info_nce(**ANY, negatives=torch.randn(6, 3, 4), false_negative_margin=0.1),
            "false_negative_margin takes negatives in the batch",
        ),
        (
            lambda: F.linear_cross_entropy(Q[:, :0], W[:, :0], LABELS),
            "linear_weight must have shape .* none of them 0",
        ),
        (lambda: F.linear_cross_entropy(Q, W, LABELS, ignore_index=1.5), "ignore_index must be an integer"),
        (lambda: F.retrieval_metrics(Q, LABELS, recall_at=5), "recall_at must be a tuple of integers, got 5"),
        (lambda: losses.InfoNCELoss(temperature="x"), "temperature must be a number, got str"),
        (lambda: losses.ClipLoss(group=object()), "group must come with distributed='gather' or 'ring'"),
        (lambda: losses.InfoNCELoss(reduction="avg"), "reduction must be one of .* got 'avg'"),
        (lambda: losses.TripletMarginLoss(reduction="avg"), "reduction must be one of .* got 'avg'"),
        (lambda: losses.ContrastiveLoss(reduction="avg"), "reduction must be one of .* got 'avg'"),
        (lambda: losses.CosineContrastiveLoss(reduction="avg"), "reduction must be one of .* got 'avg'"),
        (lambda: losses.NegativeQueue(2.5, 4), "size must be an integer of at least 1, got 2.5"),
        (lambda: losses.NegativeQueue(True, 4), "size must be an integer of at least 1, got True"),
        (lambda: losses.NegativeQueue(2, 4, dtype=None), "dtype must be a floating-point type, got None"),
        (lambda: losses.LinearCrossEntropyLoss(4, 5, weight=[1.0] * 5), "weight must be a tensor, got list"),
        (lambda: losses.LinearCrossEntropyLoss(4, 5, out_features=3), "out_features must be a tuple"),
        (
            lambda: losses.LinearCrossEntropyLoss(4, 5, label_smoothing="a"),
            "label_smoothing must be a num",
        ),
    ],
)
def test_messages_name_the_argument(call, says):
    with pytest.raises(thawkit.ThawkitError, match=says):
        call()


@every_loss
def test_compiles_for_sizes_that_change(loss):
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled), gradients(loss), strict=True):
        torch.testing.assert_close(a, b)
    if loss in [LOSSES[n] for n in ("info_nce", "hard", "clip", "siglip", "nt_xent", "mmd")]:
        more = Q.repeat(2, 1), K.repeat(2, 1)
        for a, b in zip(gradients(compiled, *more), gradients(loss, *more), strict=True):
            torch.testing.assert_close(a, b)


def test_numbers_of_other_libraries_count_as_numbers():
    got = F.info_nce(Q, K, logit_scale=np.float32(2.0))
    assert torch.equal(got, F.info_nce(Q, K, logit_scale=2.0))
    assert F.retrieval_metrics(Q, LABELS, recall_at=[np.int64(1)]).recall_at.keys() == {1}


def test_modules_say_what_they_are():
    loss = losses.InfoNCELoss(0.1, false_negative_margin=0.2)
    assert "temperature=0.1" in repr(loss)
    assert "false_negative_margin=0.2" in repr(loss)
    assert "mining='hard'" in repr(losses.TripletMarginLoss(mining="hard"))


@pytest.mark.parametrize("learned", [-0.1, 0.0])
def test_a_temperature_that_was_learned_to_be_negative_is_refused(learned):
    loss = losses.InfoNCELoss(torch.nn.Parameter(torch.tensor(0.1)))
    loss.temperature.data.fill_(learned)
    with pytest.raises(ThawkitError, match="temperature must be positive and finite"):
        loss(Q, K)


def test_the_module_hands_its_options_on():
    loss = losses.InfoNCELoss(0.1, hard_negative_beta=0.5)
    weight = torch.rand(6)
    got = loss(Q, K, labels=LABELS, sample_weight=weight)
    options = {"labels": LABELS, "sample_weight": weight, "hard_negative_beta": 0.5}
    assert torch.equal(got, F.info_nce(Q, K, logit_scale=10.0, **options))
    learned = losses.InfoNCELoss(torch.nn.Parameter(torch.tensor(0.1)))
    learned(Q, K).backward()
    assert learned.temperature.grad is not None
