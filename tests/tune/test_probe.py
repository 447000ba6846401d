from dataclasses import replace

import numpy as np
import pytest
import torch

from thawkit.data import ImageDataset
from thawkit.errors import ThawkitError
from thawkit.select import capture_features, create_model
from thawkit.tune import linear_probe, predict
from thawkit.tune.probe import PENALTIES


def features_of(model, dataset):
    with capture_features(model.module) as captured:
        predict(model, dataset)
    return torch.cat(captured).double().numpy()


def test_probe_is_the_logistic_regression_of_scikit_learn(splits):
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = create_model("lenet", 3)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    result = linear_probe(model, splits)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert result["penalty"] in PENALTIES
    assert result["test"]["balanced_accuracy"] > 0.5

    x = features_of(model, splits.train)
    mean, std = x.mean(0), np.maximum(x.std(0, ddof=1), 1e-6)
    peer = linear_model.LogisticRegression(C=1 / (len(x) * result["penalty"]), max_iter=5000, tol=1e-8)
    peer.fit((x - mean) / std, splits.train.labels)
    theirs = peer.predict_log_proba((features_of(model, splits.test) - mean) / std)
    loss = -theirs[np.arange(len(theirs)), splits.test.labels].mean()
    assert result["test"]["loss"] == pytest.approx(loss, rel=2e-2)


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("recall", "monitor must be one of accuracy, balanced_accuracy, macro_f1, auroc, loss, got 'recall'"),
        ("auroc", "monitor 'auroc' needs .* exactly 2 classes, blobs has images of 3 of 3"),
    ],
)
def test_monitor_is_checked_first(splits, monitor, message):
    with pytest.raises(ThawkitError, match=message):
        linear_probe(create_model("lenet", 3), splits, monitor=monitor)


def test_probe_repeats_itself(splits):
    assert linear_probe(create_model("lenet", 3), splits) == linear_probe(create_model("lenet", 3), splits)


@pytest.mark.parametrize("monitor", ["loss", "balanced_accuracy"])
def test_penalty_is_chosen_on_val_and_never_on_test(splits, monitor):
    labels = splits.test.labels.copy()
    labels[np.random.default_rng(3).random(len(labels)) < 0.4] = 0
    clean, noisy = splits.val, ImageDataset(splits.test.images, labels, splits.classes)

    def chosen(val, test):
        parts = replace(splits, val=val, test=test)
        return linear_probe(create_model("lenet", 3), parts, monitor=monitor)["penalty"]

    assert chosen(clean, noisy) == chosen(clean, clean) != chosen(noisy, noisy) == chosen(noisy, clean)
