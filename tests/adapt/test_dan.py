import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from thawkit.adapt import DAN, fit_adapt
from thawkit.data import ImageDataset, Splits, load
from thawkit.errors import ThawkitError
from thawkit.select import create_model
from thawkit.tune import Supervised, TuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = Console(quiet=True)


def mmd_by_definition(x, y, kernels=5, multiplier=2.0):
    """Biased squared MMD, pair by pair; the bandwidths are the mean squared distance times powers of two."""
    z = torch.cat([x, y])
    squared = (z[:, None] - z[None]).square().sum(-1)
    mean = squared.sum() / (len(z) ** 2 - len(z))
    kernel = sum(torch.exp(-squared / (2 * mean * multiplier ** (k - kernels // 2))) for k in range(kernels))
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "pixel_values": torch.randn(8, 3, 4, 4),
        "labels": torch.arange(8) % 3,
        "target_pixel_values": torch.randn(8, 3, 4, 4) + 0.7,
        "progress": torch.tensor(0.25),
    }


@pytest.mark.parametrize("ramp", [True, False])
def test_loss_is_cross_entropy_plus_weighted_mmd_of_the_features(network, batch, ramp):
    features = [network[:3](batch[key]) for key in ("pixel_values", "target_pixel_values")]
    weight = 0.6 * (2 / (1 + math.exp(-2.5)) - 1 if ramp else 1)
    supervised = F.cross_entropy(network[3](features[0]), batch["labels"])
    expected = supervised + weight * mmd_by_definition(*features)
    torch.testing.assert_close(DAN(0.6, ramp=ramp).loss(network, batch), expected, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_body_from_the_target_but_the_head_from_labels_alone(network, batch):
    without = {**batch, "target_pixel_values": batch["pixel_values"].clone()}
    grads = []
    for inputs in (batch, without):
        network.zero_grad()
        DAN(1.0, ramp=False).loss(network, inputs).backward()
        grads.append([network[1].weight.grad.clone(), network[3].weight.grad.clone()])
    assert not torch.allclose(grads[0][0], grads[1][0], atol=1e-5)
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_ramp_goes_from_nothing_to_the_trade_off():
    method = DAN(2.0)
    assert method.weight(0.0) == 0
    assert method.weight(1.0) == pytest.approx(2.0, rel=1e-3)
    assert DAN(2.0, ramp=False).weight(0.0) == 2.0


@pytest.mark.parametrize("arguments", [{"trade_off": -1.0}, {"trade_off": math.nan}, {"criterion": "hinge"}])
def test_bad_arguments(arguments):
    with pytest.raises(ThawkitError):
        DAN(**arguments)


def small(name, train, others, spoil=False):
    splits = load(name)
    parts = [
        part.subset(np.arange(n))
        for part, n in zip((splits.train, splits.val, splits.test), (train, others, others), strict=True)
    ]
    if spoil:
        parts[0] = ImageDataset(parts[0].images, np.zeros(train, int), splits.classes, parts[0].name)
    return Splits(*parts, splits.classes, name)


def adapt(output, method, epochs=4, spoil=False, images=1200, **options):
    pytest.importorskip("sklearn")
    source, target = small("mnist", images, 200), small("optdigits", images // 2, 200, spoil)
    options.setdefault("keep", "last")
    config = TuneConfig(
        epochs=epochs, batch_size=50, learning_rate=2e-3, train="all", augment="none", **options
    )
    model = create_model("lenet", 10)
    return fit_adapt(model, source, target, method=method, config=config, output=output, console=QUIET)


@pytest.mark.slow
def test_dan_beats_source_only_on_real_digits(tmp_path):
    alone = adapt(tmp_path / "alone", Supervised())
    adapted = adapt(tmp_path / "adapted", DAN())
    assert adapted.metrics["target"]["accuracy"] >= alone.metrics["target"]["accuracy"] + 0.05
    assert adapted.metrics["test"]["accuracy"] > 0.8
    assert adapted.metrics["selection"] == "the last epoch"
    assert adapted.metrics["best_epoch"] == 4
    assert [row["step"] for row in adapted.history] == [row["step"] for row in alone.history]


def test_target_training_labels_are_never_read(tmp_path):
    honest, spoilt = (
        adapt(tmp_path / str(spoil), DAN(), epochs=1, spoil=spoil, images=300) for spoil in (False, True)
    )
    assert honest.metrics == spoilt.metrics


def test_unlabelled_targets_are_enough(tmp_path):
    source, target = small("mnist", 100, 50), small("pneumoniamnist", 40, 20)
    parts = (target.train, target.val, target.test)
    target = Splits(*(ImageDataset(p.images, None, source.classes) for p in parts), source.classes, "x-rays")
    result = fit_adapt(
        create_model("lenet", 10),
        source,
        target,
        config=TuneConfig(epochs=1, batch_size=20, train="all", keep="last"),
        output=tmp_path / "run",
        console=QUIET,
    )
    assert "target" not in result.metrics
    assert "target_accuracy" not in result.history[0]


def test_targets_with_other_classes_are_refused(tmp_path):
    with pytest.raises(ThawkitError, match="the target pneumoniamnist has other classes than mnist"):
        fit_adapt(
            create_model("lenet", 10),
            load("mnist"),
            load("pneumoniamnist"),
            output=tmp_path / "run",
            console=QUIET,
        )
