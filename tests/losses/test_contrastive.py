"""Contrastive losses as views of the pairwise engine, and the queue of earlier keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from thawkit.errors import ThawkitError
from thawkit.losses import ClipLoss, InfoNCELoss, NegativeQueue
from thawkit.losses import functional as F
from thawkit.ops.pairwise import reference


def pairs(rows, features=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, features, generator=generator)
    return image, image + torch.randn(rows, features, generator=generator)


def clip_in_float64(image, text, scale, normalized, reduction):
    """The definition, with gradients with respect to all three."""
    leaves = [x.detach().double().requires_grad_() for x in (image, text, scale)]
    rows, columns, factor = leaves
    if normalized:
        rows, columns = normalize(rows), normalize(columns)
    logits = factor * rows @ columns.T
    own = torch.arange(len(image))
    loss = sum(cross_entropy(x, own, reduction=reduction) for x in (logits, logits.T)) / 2
    return loss, torch.autograd.grad((loss * upstream_for(loss)).sum(), leaves)


def upstream_for(loss):
    return torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).reshape(loss.shape)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 37, 400])
def test_clip_is_its_definition(rows, normalized, reduction):
    image, text = pairs(rows)
    scale = torch.tensor(9.0 if normalized else 0.4)
    leaves = [x.clone().requires_grad_() for x in (image, text, scale)]
    loss = F.clip(leaves[0], leaves[1], logit_scale=leaves[2], normalize=normalized, reduction=reduction)
    gradients = torch.autograd.grad((loss * upstream_for(loss)).sum(), leaves)
    true_loss, true_gradients = clip_in_float64(image, text, scale, normalized, reduction)
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-6)
    for got, expected in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5 * max(1, rows))


@pytest.mark.parametrize("normalized", [True, False])
def test_clip_reference_is_its_definition(normalized):
    image, text = pairs(9)
    scale = torch.tensor(0.7)
    expected, _ = clip_in_float64(image, text, scale, normalized, "none")
    torch.testing.assert_close(
        reference.clip(image.double(), text.double(), scale.double(), normalized), expected
    )


def test_a_frozen_tower_gets_no_gradient():
    image, text = pairs(20)
    text.requires_grad_()
    F.clip(image, text, logit_scale=5.0).backward()
    assert image.grad is None
    assert text.grad is not None


def test_clip_double_backward():
    image, text = (x.double().requires_grad_() for x in pairs(5, 4))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *x: F.clip(x[0], x[1], logit_scale=x[2]), (image, text, scale))


def test_clip_module_calls_the_function():
    image, text = pairs(30)
    got = ClipLoss(normalize=False, reduction="none")(image, text, 0.3)
    torch.testing.assert_close(
        got, F.clip(image, text, logit_scale=0.3, normalize=False, reduction="none"), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("image", "text", "says"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), "text must have the shape of image"),
        (torch.zeros(3, 4), torch.zeros(4, 4), "text must have the shape of image"),
        (torch.zeros(3, 4), torch.zeros(3, 4).double(), "text must have the dtype of image"),
        (torch.zeros(3), torch.zeros(3), "image must"),
        (torch.zeros(0, 4), torch.zeros(0, 4), "mean"),
    ],
)
def test_clip_bad_input(image, text, says):
    with pytest.raises(ThawkitError, match=says):
        F.clip(image, text)


def test_queue_keeps_the_latest_keys():
    queue = NegativeQueue(5, 2)
    assert queue.negatives().shape == (0, 2)
    seen = torch.arange(34.0).reshape(17, 2)
    first = 0
    for count in (2, 2, 3, 0, 1, 9):  # partly full, full, past the end, nothing, one, more than fit
        queue.enqueue(seen[first : first + count])
        first += count
        kept = queue.negatives()
        latest = seen[max(0, first - 5) : first]
        assert sorted(kept[:, 0].tolist()) == latest[:, 0].tolist()


def test_queue_goes_on_from_a_checkpoint():
    keys = torch.randn(11, 3)
    queue, loaded = NegativeQueue(4, 3), NegativeQueue(4, 3)
    queue.enqueue(keys[:6])
    loaded.load_state_dict(copy.deepcopy(queue.state_dict()))
    for each in (queue, loaded):
        each.enqueue(keys[6:7])
    torch.testing.assert_close(loaded.negatives(), queue.negatives(), rtol=0, atol=0)


def test_queued_keys_are_negatives_without_gradient():
    q, k = pairs(8)
    q.requires_grad_()
    k.requires_grad_()
    queue = NegativeQueue(16, 24)
    earlier = torch.randn(12, 24)
    queue.enqueue(earlier)
    loss = InfoNCELoss()(q, torch.cat([k, queue.negatives()]))
    queue.enqueue(k)  # before backward: the loss must not see it
    loss.backward()
    keys = torch.cat([k.detach(), earlier])
    logits = normalize(q.detach().double()) @ normalize(keys.double()).T / 0.07
    torch.testing.assert_close(
        loss.detach().double(), cross_entropy(logits, torch.arange(8)), rtol=1e-5, atol=1e-6
    )
    assert k.grad.abs().sum() > 0
    assert not queue.rows.requires_grad


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NegativeQueue(0, 4), "size must be an integer of at least 1"),
        (lambda: NegativeQueue(4, 0), "features must be an integer of at least 1"),
        (lambda: NegativeQueue(4, 4, torch.int64), "dtype must be a floating-point type"),
        (lambda: NegativeQueue(4, 4).enqueue(torch.zeros(2, 3)), r"keys must have shape \(N, 4\)"),
        (lambda: NegativeQueue(4, 4).enqueue(torch.zeros(4)), "keys must"),
    ],
)
def test_queue_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
