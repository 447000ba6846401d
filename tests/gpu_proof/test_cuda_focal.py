"""The focal losses on the CUDA backend, its kernels those built for the CPU, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import relative_error, values_and_gradients
from thawkit import ops
from thawkit.losses import functional as F

pytestmark = pytest.mark.usefixtures("on_cuda")

TOLERANCE = 5e-6


def _against_float64(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    got = values_and_gradients(function, x)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, x.double())
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < TOLERANCE


def _logits(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


SOFTMAX: dict[str, dict[str, Any]] = {
    "plain": {},
    "gamma 0": {"gamma": 0.0},
    "class weights": {"alpha": torch.linspace(0.1, 0.9, 20)},
    "smoothing": {"label_smoothing": 0.1},
    "mean over positives": {"normalizer": "positives"},
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("options", SOFTMAX.values(), ids=SOFTMAX)
@pytest.mark.parametrize("axes", [(), (5, 3)])
def test_softmax_equals_float64(options: dict[str, Any], reduction: str, axes: tuple[int, ...]) -> None:
    if "normalizer" in options and reduction == "none":
        pytest.skip("nothing is divided")
    x = _logits(9, 20, *axes)
    target = (torch.arange(x[:, 0].numel()) % 20).view(9, *axes)
    target.view(-1)[3] = -100
    _against_float64(lambda x: F.focal_loss(x, target, reduction=reduction, **options), x)
    probable = _logits(9, 20, *axes).flip(0).softmax(1)
    _against_float64(lambda x: F.focal_loss(x, probable.to(x.dtype), reduction=reduction, **options), x)


SIGMOID: dict[str, dict[str, Any]] = {
    "plain": {},
    "gamma 0.5": {"gamma": 0.5},
    "class weights": {"alpha": torch.linspace(0.1, 0.9, 7)},
    "pos_weight": {"pos_weight": torch.linspace(0.5, 2, 7)},
    "mask": {"mask": torch.arange(7) % 2 == 0},
    "one ignored": {"ignore_index": 1},
    "mean over positives": {"normalizer": "positives"},
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("options", SIGMOID.values(), ids=SIGMOID)
def test_sigmoid_equals_float64(options: dict[str, Any], reduction: str) -> None:
    if "normalizer" in options and reduction == "none":
        pytest.skip("nothing is divided")
    x = _logits(20, 7)
    targets = (torch.arange(140) % 3 == 0).float().view(20, 7)
    function = lambda x: F.sigmoid_focal_loss(x, targets.to(x.dtype), reduction=reduction, **options)
    _against_float64(function, x)
    indices = torch.arange(20) % 8 - 1
    _against_float64(lambda x: F.sigmoid_focal_loss(x, indices, reduction=reduction, **options), x)


def test_nothing_gives_nothing() -> None:
    assert F.sigmoid_focal_loss(_logits(0, 3), _logits(0, 3), reduction="sum") == 0
    assert F.focal_loss(_logits(0, 3), torch.zeros(0, dtype=torch.int64), reduction="sum") == 0
