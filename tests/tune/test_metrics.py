import numpy as np
import pytest
import torch

from thawkit.errors import ThawkitError
from thawkit.tune import classification_metrics


def draw(rows, classes, seed, coarse=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    labels = rng.integers(0, classes, rows)
    return (np.round(logits) if coarse else logits), labels


@pytest.mark.parametrize(("rows", "classes"), [(50, 2), (200, 5), (7, 4)])
@pytest.mark.parametrize("coarse", [False, True])
def test_agrees_with_scikit_learn(rows, classes, coarse):
    sk = pytest.importorskip("sklearn.metrics")
    logits, labels = draw(rows, classes, seed=rows, coarse=coarse)
    ours, predicted = classification_metrics(logits, labels), logits.argmax(1)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    expected = sk.confusion_matrix(labels, predicted, labels=range(classes))
    np.testing.assert_array_equal(ours["confusion"], expected)
    if classes == 2:
        assert ours["auroc"] == pytest.approx(sk.roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    else:
        assert "auroc" not in ours


def test_loss_is_cross_entropy_and_survives_large_logits():
    logits, labels = draw(30, 4, seed=1)
    for scale in (1, 1e4):
        expected = torch.nn.functional.cross_entropy(torch.tensor(logits * scale), torch.tensor(labels))
        assert classification_metrics(logits * scale, labels)["loss"] == pytest.approx(expected.item())


def test_absent_classes_do_not_count():
    logits = np.eye(4)[[0, 0, 1]] * 3
    metrics = classification_metrics(logits, np.array([0, 1, 1]))
    assert metrics["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["confusion"] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert "auroc" not in classification_metrics(np.eye(2), np.array([0, 0]))


@pytest.mark.parametrize(("rows", "labels"), [(0, []), (2, [0]), (2, [0, 3]), (2, [-1, 0])])
def test_labels_that_do_not_fit(rows, labels):
    with pytest.raises(ThawkitError):
        classification_metrics(np.zeros((rows, 3)), np.array(labels, dtype=int))
