import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thawkit.data import ImageDataset
from thawkit.errors import ThawkitError
from thawkit.tune import Supervised, TuneConfig

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-1.0, 0.0, 3.0]])
LABELS = torch.tensor([0, 1, 1])
TRAIN = ImageDataset(np.zeros((8, 4, 4), np.uint8), [0, 0, 0, 0, 0, 1, 1, 2], "abc")
BALANCED = torch.tensor([8 / 15, 8 / 6, 8 / 3])


@pytest.mark.parametrize("weights", [None, "balanced", [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_with_weights_and_smoothing(weights, smoothing):
    method = Supervised(label_smoothing=smoothing, class_weights=weights)
    method.prepare(TRAIN, 3)
    expected = {None: None, "balanced": BALANCED}.get(weights if not isinstance(weights, list) else 0)
    expected = torch.tensor(weights) if isinstance(weights, list) else expected
    loss = method.criterion_loss(LOGITS, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, LABELS, expected, label_smoothing=smoothing))


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_focal_weighs_by_what_is_left_to_learn(weights):
    method = Supervised("focal", gamma=1.5, class_weights=weights)
    method.prepare(TRAIN, 3)
    p = LOGITS.softmax(1)[torch.arange(3), LABELS]
    alpha = 1.0 if weights is None else BALANCED[LABELS]
    torch.testing.assert_close(
        method.criterion_loss(LOGITS, LABELS), (-alpha * (1 - p) ** 1.5 * p.log()).mean()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"criterion": "hinge"},
        {"label_smoothing": 1.0},
        {"criterion": "focal", "label_smoothing": 0.1},
        {"class_weights": "equal"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ThawkitError):
        Supervised(**arguments)


def test_wrong_number_of_class_weights():
    with pytest.raises(ThawkitError, match="2 weights for 3 classes"):
        Supervised(class_weights=[1.0, 2.0]).prepare(TRAIN, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("weight_decay", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
        ("workers", -1),
        ("warmup", 1.0),
        ("patience", 0),
        ("scheduler", "step"),
        ("monitor", "recall"),
        ("keep", "first"),
        ("augment", "mixup"),
        ("precision", "int8"),
        ("device", "tpu"),
    ],
)
def test_config_names_the_field_and_the_value(field, value):
    with pytest.raises(ThawkitError, match=f"{field} must be .*{value}"):
        TuneConfig(**{field: value})
