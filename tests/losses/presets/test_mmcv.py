"""mmcv's focal losses, which run on CUDA only: their documented formulas, in float64, and the stand-ins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses import oracle
from thawkit.errors import ThawkitError
from thawkit.losses.presets import mmcv

SHAPES = [(1, 1), (9, 5), (40, 33)]


def batch(shape, background, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    t = torch.randint(0, shape[1], shape[:1], generator=generator)
    if background is not None:
        t[torch.rand(shape[:1], generator=generator) < 0.4] = background
    return x, t


def sigmoid_formula(x, t, gamma, alpha, weight, reduction):
    """One row's class is positive, and its weight multiplies the row; a mean divides by the rows."""
    rows = []
    for z, y in zip(x, t.tolist(), strict=True):
        hot = torch.arange(len(z)) == y
        p = torch.sigmoid(z)
        positive = alpha * (1 - p) ** gamma * nn.functional.softplus(-z)
        negative = (1 - alpha) * p**gamma * nn.functional.softplus(z)
        row = torch.where(hot, positive, negative)
        rows.append(row if weight is None else row * weight[y])
    rows = torch.stack(rows)
    return rows.sum() / len(x) if reduction == "mean" else rows.sum() if reduction == "sum" else rows


def softmax_formula(x, t, gamma, alpha, weight, reduction):
    rows = []
    for z, y in zip(x, t.tolist(), strict=True):
        if y < 0:
            rows.append(0 * z.sum())
            continue
        log_p = z[y] - z.logsumexp(0)
        row = alpha * (1 - log_p.exp()) ** gamma * -log_p
        rows.append(row if weight is None else row * weight[y])
    rows = torch.stack(rows)
    return rows.sum() / len(x) if reduction == "mean" else rows.sum() if reduction == "sum" else rows


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_sigmoid_form(shape, gamma, weighted, reduction):
    x, t = batch(shape, None if weighted else shape[1])
    weight = torch.linspace(0.5, 1.5, shape[1]) if weighted else None
    oracle.assert_is(
        lambda x: mmcv.sigmoid_focal_loss(
            x, t, gamma, 0.3, None if weight is None else weight.to(x.dtype), reduction
        ),
        lambda x: sigmoid_formula(x, t, gamma, 0.3, None if weight is None else weight.double(), reduction),
        x,
        rtol=1e-5,
        atol=2e-6,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_form(shape, gamma, weighted, reduction):
    x, t = batch(shape, -1)
    weight = torch.linspace(0.5, 1.5, shape[1]) if weighted else None
    oracle.assert_is(
        lambda x: mmcv.softmax_focal_loss(
            x, t, gamma, 0.3, None if weight is None else weight.to(x.dtype), reduction
        ),
        lambda x: softmax_formula(x, t, gamma, 0.3, None if weight is None else weight.double(), reduction),
        x,
        rtol=1e-5,
        atol=2e-6,
    )


def test_modules():
    x, t = batch((9, 5), None)
    weight = torch.rand(5)
    for module, function in (
        (mmcv.SigmoidFocalLoss, mmcv.sigmoid_focal_loss),
        (mmcv.SoftmaxFocalLoss, mmcv.softmax_focal_loss),
    ):
        loss = module(1.5, 0.3, weight, "sum")
        assert loss.state_dict().keys() == {"weight"}
        assert repr(loss) == f"{module.__name__}(gamma=1.5, alpha=0.3, reduction=sum)"
        torch.testing.assert_close(loss(x, t), function(x, t, 1.5, 0.3, weight, "sum"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saturated_half_precision(dtype):
    x = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([0, 0])
    for loss in (mmcv.sigmoid_focal_loss, mmcv.softmax_focal_loss):
        value = loss(x, t)
        (gradient,) = torch.autograd.grad(value, x)
        assert value.isfinite()
        assert value > 10
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, t: mmcv.sigmoid_focal_loss(x, t, weight=torch.ones(5)), "target must hold classes 0 to 4"),
        (lambda x, t: mmcv.sigmoid_focal_loss(x, t, weight=torch.ones(4)), r"weight must have shape \(5,\)"),
        (lambda x, t: mmcv.sigmoid_focal_loss(x, t.int()), "target must hold int64 classes"),
        (lambda x, t: mmcv.softmax_focal_loss(x, t), "target must hold class indices"),
        (lambda x, t: mmcv.softmax_focal_loss(x[0], t), "input must have shape"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call(*batch((9, 5), 5))
