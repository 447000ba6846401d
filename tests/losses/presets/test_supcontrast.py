"""The stand-in for SupContrast's SupConLoss, which is no package: its definition, entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.supcontrast import SupConLoss


def batch(samples, views, features=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(samples, views, features, generator=generator)
    return normalize(rows + rows[:, :1], dim=2), torch.randint(0, 3, (samples,), generator=generator)


def definition(features, temperature, positives, mode="all", base_temperature=0.07):
    """Khosla et al. 2020, eq. 2, times temperature / base_temperature.

    ``positives[a, b]`` says how much sample b is a positive of sample a. Every view but the anchor itself is
    in the denominator and, where its sample is a positive, in the numerator; the mean is over all anchors.
    """
    samples, views = features.shape[:2]
    everyone = [(v, b) for v in range(views) for b in range(samples)]
    losses = []
    for v, a in everyone[:samples] if mode == "one" else everyone:
        others = [pair for pair in everyone if pair != (v, a)]
        logits = torch.stack([features[a, v].flatten() @ features[b, w].flatten() for w, b in others])
        log_p = (logits / temperature).log_softmax(0)
        weights = torch.stack([positives[a, b] for _, b in others]).to(log_p)
        losses.append(-(weights * log_p).sum() / weights.sum() if weights.any() else 0 * logits.sum())
    return temperature / base_temperature * torch.stack(losses).mean()


def assert_is_its_definition(features, temperature, positives, mode="all", base_temperature=0.07, **options):
    peers.assert_same(
        lambda x, t: SupConLoss(t, mode, base_temperature)(x, **options),
        lambda x, t: definition(x, t, positives, mode, base_temperature),
        features,
        torch.tensor(temperature),
        atol=3e-7 / temperature,  # rounding of the logits, which the loss is a difference of
    )


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize(("samples", "views"), [(1, 2), (2, 2), (9, 1), (7, 2), (5, 3)])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_labels(samples, views, mode, temperature):
    features, labels = batch(samples, views)
    positives = labels[:, None] == labels
    assert_is_its_definition(features, temperature, positives, mode, labels=labels)
    assert_is_its_definition(features, temperature, positives, mode, 0.2, labels=labels[:, None])


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize(("samples", "views"), [(1, 2), (7, 2), (5, 3)])
def test_without_labels_it_is_simclr(samples, views, mode):
    features, _ = batch(samples, views)
    assert_is_its_definition(features, 0.1, torch.eye(samples), mode)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.int64, "weights"])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize(("samples", "views"), [(1, 2), (9, 1), (7, 2), (5, 3)])
def test_masks_need_not_be_symmetric(samples, views, mode, kind):
    features, _ = batch(samples, views)
    mask = torch.rand(samples, samples, generator=torch.Generator().manual_seed(1))
    if kind != "weights":
        mask = (mask < 0.4).to(kind)
    mask[0] = 0  # sample 0 attracts, and is attracted by nobody
    assert_is_its_definition(features, 0.1, mask, mode, mask=mask)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_weights_next_to_0_are_not_divided_by(mode):
    features, _ = batch(4, 3)
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    mask[0], mask[1] = 1e-8, 0
    mask[1, 1] = 6e-7  # of two other views, and of the anchor itself, which counts not
    mask[2] = 3e-7
    normal = SupConLoss(0.1, mode)(features, mask=mask.where(mask.sum(1, keepdim=True) > 1e-3, 0))
    small = [
        SupConLoss(0.1, mode)(features, mask=mask.where(torch.arange(4)[:, None] == i, 0)) for i in range(3)
    ]
    divided = [
        SupConLoss(0.1, mode)(features, mask=1e3 * mask.where(torch.arange(4)[:, None] == i, 0))
        for i in range(3)
    ]
    weights = 12 * 1e-8 - 1e-8, 2 * 6e-7, 11 * 3e-7
    for got, loss, weight in zip(small, divided, weights, strict=True):
        torch.testing.assert_close(got, loss * (weight if weight < 1e-6 else 1))
    torch.testing.assert_close(SupConLoss(0.1, mode)(features, mask=mask), normal + sum(small))


def test_labels_may_be_any_numbers():
    features, labels = batch(6, 2)
    expected = SupConLoss()(features, labels)
    assert torch.equal(SupConLoss()(features, labels / 4 - 0.25), expected)


def test_more_dimensions_are_one_vector():
    features, labels = batch(5, 2, features=12)
    shaped = features.reshape(5, 2, 3, 4)
    assert_is_its_definition(shaped, 0.1, labels[:, None] == labels, labels=labels)


def test_defaults():
    features, labels = batch(5, 2)
    expected = SupConLoss(0.07, "all", 0.07)(features, labels)
    torch.testing.assert_close(SupConLoss()(features, labels), expected, rtol=0, atol=0)


def test_temperature_is_learned():
    loss = SupConLoss(torch.nn.Parameter(torch.tensor(0.1)))
    loss(*batch(5, 2)).backward()
    assert loss.temperature.grad is not None


FEATURES = torch.zeros(3, 2, 4)


@pytest.mark.parametrize(
    ("features", "options", "says"),
    [
        (FEATURES[0], {}, r"features must have shape \(B, V, ...\), got \(2, 4\)"),
        (FEATURES.long(), {}, "features must be float32"),
        (FEATURES[:0], {}, "features has no rows"),
        (FEATURES, {"labels": torch.arange(3), "mask": torch.eye(3)}, "either labels or mask may be given"),
        (FEATURES, {"labels": torch.arange(2)}, r"labels must be a tensor of 3 numbers.* got \(2,\)"),
        (FEATURES, {"labels": [0, 1, 2]}, "labels must be a tensor of 3 numbers.* got list"),
        (FEATURES, {"labels": torch.full((3,), torch.nan)}, "labels must be finite"),
        (FEATURES, {"mask": -torch.eye(3)}, "mask must hold finite numbers of at least 0 only"),
        (FEATURES, {"mask": torch.eye(2)}, r"mask must be a tensor of shape \(3, 3\), got \(2, 2\)"),
    ],
)
def test_bad_input(features, options, says):
    with pytest.raises(ThawkitError, match=says):
        SupConLoss()(features, **options)


def test_bad_arguments():
    with pytest.raises(ThawkitError, match="contrast_mode must be one of"):
        SupConLoss(contrast_mode="two")
    with pytest.raises(ThawkitError, match="temperature must be positive"):
        SupConLoss(0.0)
    with pytest.raises(ThawkitError, match="base_temperature must be positive"):
        SupConLoss(base_temperature=-1.0)
