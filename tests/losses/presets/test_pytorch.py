"""torch's LinearCrossEntropyLoss and its stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses.presets import peers
from thawkit.losses.presets.pytorch import LinearCrossEntropyLoss, linear_cross_entropy

FEATURES, CLASSES = 12, 7


@pytest.fixture(scope="module")
def theirs():
    if not hasattr(nn, "LinearCrossEntropyLoss"):
        pytest.skip(f"torch {torch.__version__} has no LinearCrossEntropyLoss, nothing is compared with it")
    return nn.LinearCrossEntropyLoss


def batch(rows, dims=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES, (rows, *dims), generator=generator)
    return torch.randn(rows, FEATURES, generator=generator), target


def compare(theirs, input, target, **options):
    """Values, and gradients of the input and the layer, whose parameters go from theirs to ours."""
    yours = theirs(FEATURES, CLASSES, **options)
    state = yours.state_dict()

    def of(loss):
        def function(x, *parameters):
            module = loss(FEATURES, CLASSES, **options)
            at = target.to(x.dtype) if target.is_floating_point() else target
            names = dict(zip([n for n, _ in yours.named_parameters()], parameters, strict=True))
            buffers = {n: b.to(x.dtype) for n, b in yours.named_buffers()}
            return torch.func.functional_call(module, names | buffers, (x, at))

        return function

    assert state.keys() == LinearCrossEntropyLoss(FEATURES, CLASSES, **options).state_dict().keys()
    LinearCrossEntropyLoss(FEATURES, CLASSES, **options).load_state_dict(state)
    peers.assert_same(of(LinearCrossEntropyLoss), of(theirs), input, *yours.parameters())


def test_arguments(theirs):
    peers.assert_same_arguments(LinearCrossEntropyLoss.__init__, theirs.__init__)
    peers.assert_same_arguments(LinearCrossEntropyLoss.forward, theirs.forward)
    peers.assert_same_arguments(
        linear_cross_entropy, nn.functional.linear_cross_entropy, but=("ignore_index",)
    )


@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_classes(theirs, rows, bias, reduction):
    compare(theirs, *batch(rows), bias=bias, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_every_option_together(theirs, reduction):
    options = {"bias": True, "weight": torch.rand(CLASSES), "ignore_index": 2, "label_smoothing": 0.1}
    compare(theirs, *batch(40), reduction=reduction, **options)
    compare(theirs, *batch(40), reduction=reduction, options=nn.LinearCrossEntropyOptions(), bias=True)


@pytest.mark.parametrize("dims", [(2,), (2, 3)])
def test_targets_of_more_dimensions(theirs, dims):
    compare(theirs, *batch(9, dims), bias=True, out_features=dims)


def test_probabilities(theirs):
    input, _ = batch(9)
    compare(theirs, input, torch.rand(9, CLASSES).softmax(1), bias=True, label_smoothing=0.2)


def test_one_sample(theirs):
    input, target = batch(1)
    compare(theirs, input[0], target[0], bias=True)
