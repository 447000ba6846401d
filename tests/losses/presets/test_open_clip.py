"""open_clip's losses and their stand-ins."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.open_clip import ClipLoss, SigLipLoss

SIZES = [(1, 3), (2, 8), (17, 40), (130, 33)]


def batch(rows, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(rows, features, generator=generator), dim=1)
    text = normalize(image + 0.3 * torch.randn(rows, features, generator=generator), dim=1)
    return image, text


@pytest.fixture(scope="module")
def open_clip():
    return peers.library("open_clip.loss")


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_arguments(open_clip, name):
    ours, theirs = globals()[name], getattr(open_clip, name)
    peers.assert_same_arguments(ours.__init__, theirs.__init__)
    peers.assert_same_arguments(ours.forward, theirs.forward)
    assert ours().state_dict() == theirs().state_dict() == {}


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("size", SIZES)
def test_clip(open_clip, size, scale):
    inputs = *batch(*size), torch.tensor(scale)
    peers.assert_same(ClipLoss(), open_clip.ClipLoss(), *inputs)
    peers.assert_same(ClipLoss(), open_clip.ClipLoss(), *inputs, torch.tensor(-3.0))


def test_clip_of_features_that_are_not_normalized(open_clip):
    image, text = batch(9, 12)
    peers.assert_same(ClipLoss(), open_clip.ClipLoss(), 3 * image, 0.2 * text, torch.tensor([2.0]))


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (110.0, -15.0)])
@pytest.mark.parametrize("size", SIZES)
def test_siglip(open_clip, size, scale, bias):
    inputs = *batch(*size), torch.tensor(scale), torch.tensor(bias)
    peers.assert_same(SigLipLoss(), open_clip.SigLipLoss(), *inputs)


def test_siglip_without_a_bias(open_clip):
    def without(loss):
        return lambda *inputs: loss(*inputs, logit_bias=None)

    inputs = *batch(9, 12), torch.tensor(5.0)
    peers.assert_same(without(SigLipLoss()), without(open_clip.SigLipLoss()), *inputs)


@pytest.mark.parametrize(("loss", "bias"), [(ClipLoss, ()), (SigLipLoss, (torch.tensor(-10.0),))])
def test_output_is_a_dictionary_on_request(loss, bias):
    inputs = *batch(5, 8), torch.tensor(10.0), *bias
    assert loss()(*inputs, output_dict=True) == {"contrastive_loss": loss()(*inputs)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_common_bias_of_the_softmax_has_gradient_0(dtype):
    bias = torch.tensor([-3.0], dtype=dtype, requires_grad=True)
    loss = ClipLoss()(*batch(5, 8), torch.tensor(10.0), bias)
    loss.backward()
    assert loss.dtype == torch.float32
    assert bias.grad is not None
    assert bias.grad.tolist() == [0.0]


def test_bad_arguments():
    image, text = batch(3, 4)
    with pytest.raises(ThawkitError, match="dist_impl must be one of"):
        SigLipLoss(dist_impl="ring")
    with pytest.raises(ThawkitError, match="logit_bias must have one element"):
        ClipLoss()(image, text, 1.0, torch.zeros(3))
