"""The focal losses on Triton kernels, interpreted (or on a GPU, where there is one), against float64."""

from __future__ import annotations

import pytest
import torch
from tests.ops.conftest import relative_error, values_and_gradients

from thawkit import ops
from thawkit.losses import functional as F

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _against_float64(function, x, tolerance):
    with ops.use_backend("triton"):
        got = values_and_gradients(function, x)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, x.double())
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < tolerance


def _logits(*shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


SIGMOID = {
    "plain": {},
    "gamma 0.5": {"gamma": 0.5},
    "class weights": {"alpha": torch.linspace(0.1, 0.9, 7, device=DEVICE)},
    "pos_weight": {"pos_weight": torch.linspace(0.5, 2, 7, device=DEVICE)},
    "mask": {"mask": torch.arange(7, device=DEVICE) % 2 == 0},
    "one ignored": {"ignore_index": 1},
    "mean over positives": {"normalizer": "positives"},
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("options", SIGMOID.values(), ids=SIGMOID)
def test_sigmoid_equals_float64(options, reduction):
    if "normalizer" in options and reduction == "none":
        pytest.skip("nothing is divided")
    x = _logits(20, 7)
    targets = (torch.arange(140, device=DEVICE) % 3 == 0).float().view(20, 7)
    function = lambda x: F.sigmoid_focal_loss(x, targets.to(x.dtype), reduction=reduction, **options)
    _against_float64(function, x, 3e-6)
    indices = torch.arange(20, device=DEVICE) % 8 - 1
    _against_float64(lambda x: F.sigmoid_focal_loss(x, indices, reduction=reduction, **options), x, 3e-6)


SOFTMAX = {
    "plain": {},
    "gamma 0": {"gamma": 0.0},
    "class weights": {"alpha": torch.linspace(0.1, 0.9, 7, device=DEVICE)},
    "smoothing": {"label_smoothing": 0.1},
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("options", SOFTMAX.values(), ids=SOFTMAX)
@pytest.mark.parametrize("axes", [(), (5, 3)])
def test_softmax_equals_float64(options, reduction, axes):
    x = _logits(20, 7, *axes)
    target = (torch.arange(x[:, 0].numel(), device=DEVICE) % 7).view(20, *axes)
    target.view(-1)[3] = -100
    _against_float64(lambda x: F.focal_loss(x, target, reduction=reduction, **options), x, 3e-6)
    probable = _logits(20, 7, *axes).flip(0).softmax(1)
    function = lambda x: F.focal_loss(x, probable.to(x.dtype), reduction=reduction, **options)
    _against_float64(function, x, 3e-6)


def test_nothing_gives_nothing():
    with ops.use_backend("triton"):
        assert F.sigmoid_focal_loss(_logits(0, 3), _logits(0, 3), reduction="sum") == 0
        target = torch.zeros(0, dtype=torch.int64, device=DEVICE)
        assert F.focal_loss(_logits(0, 3), target, reduction="sum") == 0
