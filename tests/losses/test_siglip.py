"""SigLIP's loss against binary cross-entropies of explicit logits in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.losses import oracle
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import SigLipLoss
from thawkit.losses import functional as F
from thawkit.ops.pairwise.siglip import siglip_with_some


def pairs(rows, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, features, generator=generator)
    return image, image + torch.randn(rows, features, generator=generator)


def definition(image, text, scale, bias, normalized=True, reduction="mean"):
    if normalized:
        image = image / image.square().sum(1, keepdim=True).sqrt()
        text = text / text.square().sum(1, keepdim=True).sqrt()
    logits = scale * torch.einsum("id,jd->ij", image, text) + bias
    rows = binary_cross_entropy_with_logits(logits, torch.eye(len(image)).double(), reduction="none").sum(1)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / len(rows)}[reduction]


def loss(normalized=True, reduction="mean"):
    return lambda image, text, scale, bias: F.siglip(
        image, text, logit_scale=scale, logit_bias=bias, normalize=normalized, reduction=reduction
    )


SCALE, BIAS = torch.tensor(9.0), torch.tensor(-4.0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 61])
def test_siglip_is_its_definition(rows, normalized, reduction):
    oracle.assert_is(
        loss(normalized, reduction),
        lambda *x: definition(*x, normalized, reduction),
        *pairs(rows),
        SCALE if normalized else torch.tensor(0.3),
        BIAS,
    )


@pytest.mark.parametrize(("scale", "bias"), [(100.0, -10.0), (100.0, 0.0), (-50.0, 5.0), (0.0, 0.0)])
def test_siglip_saturated(scale, bias):
    image, text = pairs(30)
    text[:10] = image[:10]
    text[10:15] = image[3]
    oracle.assert_is(
        loss(reduction="none"),
        lambda *x: definition(*x, reduction="none"),
        image,
        text,
        torch.tensor(scale),
        torch.tensor(bias),
    )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_siglip_has_what_is_no_number_where_torch_has_it(scale, value):
    image, text = pairs(9)
    image[3, 1] = value
    inputs = image, text, torch.tensor(scale), torch.tensor(-2.0)
    got = oracle.values_and_gradients(loss(False, "none"), *inputs)
    with ops.use_backend("reference"):
        truth = oracle.values_and_gradients(loss(False, "none"), *inputs)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_siglip_defaults_and_numbers():
    image, text = pairs(5)
    expected = definition(image.double(), text.double(), 10.0, -10.0).float()
    torch.testing.assert_close(F.siglip(image, text), expected)
    assert F.siglip(image.double(), text.double(), logit_scale=3, logit_bias=1).dtype == torch.float64


def test_siglip_takes_scale_and_bias_of_shape_1():
    image, text = pairs(5)
    scale = torch.tensor([3.0], requires_grad=True)
    bias = torch.tensor([[1.0]], requires_grad=True)
    F.siglip(image, text, logit_scale=scale, logit_bias=bias).backward()
    assert scale.grad.shape == (1,)
    assert bias.grad.shape == (1, 1)


def test_siglip_no_rows():
    image, text = (x.requires_grad_() for x in pairs(0))
    assert F.siglip(image, text, reduction="none").shape == (0,)
    value = F.siglip(image, text, reduction="sum")
    value.backward()
    assert value.item() == 0
    assert image.grad.shape == (0, 12)


def test_siglip_of_a_frozen_tower():
    image, text = pairs(6)
    F.siglip(image, text.requires_grad_()).backward()
    assert image.grad is None
    assert text.grad is not None


def test_siglip_twice_differentiable():
    oracle.assert_differentiable_twice(loss(), *pairs(4, 3), SCALE, BIAS)
    oracle.assert_differentiable_twice(loss(False, "none"), *pairs(3, 2), torch.tensor(0.4), BIAS)


def test_siglip_keeps_to_what_all_losses_do():
    inputs = (*pairs(9), SCALE, BIAS)
    oracle.assert_layout_does_not_matter(loss(), *inputs)
    oracle.assert_autocast_changes_nothing(loss(), *inputs)
    oracle.assert_half_precision_is_lifted(loss(), *inputs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_siglip_compiles(backend):
    oracle.assert_compiles(loss(), *pairs(9), SCALE, BIAS, backend=backend)


@pytest.mark.parametrize("weight", [None, 0.25])
@pytest.mark.parametrize("normalized", [True, False])
def test_siglip_is_the_sum_of_what_some_of_the_texts_add(normalized, weight):
    """The texts before those of the images (none of which belongs to any), with them, and after them."""
    image, text = pairs(23)
    here = slice(9, 15)

    def parts(image, text, scale, bias):
        options = {"normalize": normalized, "weight": weight}
        some = ((text[:4], None), (text[4:18], here.start - 4), (text[18:], None))
        return sum(siglip_with_some(image[here], x, scale, bias, offset=n, **options) for x, n in some)

    def whole(*x):
        rows = definition(*x, normalized, "none")[here]
        return rows if weight is None else rows.sum() * weight

    oracle.assert_is(parts, whole, image, text, SCALE if normalized else torch.tensor(0.3), BIAS)


def test_siglip_of_no_image_has_a_gradient_of_zeros():
    image, text = pairs(0)[0], pairs(5)[1].requires_grad_()
    siglip_with_some(image, text, SCALE, BIAS, offset=0, normalize=True, weight=1.0).backward()
    assert not text.grad.any()


def test_siglip_module_calls_the_function():
    image, text = pairs(9)
    module = SigLipLoss(normalize=False, reduction="none")
    assert not module.state_dict()
    torch.testing.assert_close(
        module(image, text, 0.3, -1.0), loss(False, "none")(image, text, 0.3, -1.0), rtol=0, atol=0
    )


X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("image", "text", "options", "says"),
    [
        (torch.zeros(3), torch.zeros(3), {}, "image must have shape"),
        (torch.zeros(3, 4).int(), X, {}, "image must be float32"),
        ([1.0], X, {}, "image must be a tensor, got list"),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {},
            r"text must have the shape of image, \(3, 4\), got \(2, 4\)",
        ),
        (X, torch.zeros(3, 4).double(), {}, "text must have the dtype of image"),
        (X, torch.zeros(3, 4, device="meta"), {}, "text is on meta but image is on cpu"),
        (X, X, {"logit_scale": math.nan}, "logit_scale must be finite"),
        (X, X, {"logit_scale": torch.ones(2)}, "logit_scale must have one"),
        (X, X, {"logit_bias": "a"}, "logit_bias must be a number, got str"),
        (X, X, {"logit_bias": torch.tensor(1)}, "logit_bias must be float32"),
        (X, X, {"reduction": "max"}, "reduction must be one of"),
        (torch.zeros(0, 4), torch.zeros(0, 4), {}, "image has no rows"),
    ],
)
def test_siglip_bad_input(image, text, options, says):
    with pytest.raises(ThawkitError, match=says):
        F.siglip(image, text, **options)
