"""Zeros around an image, as torch pads."""

import pytest
import torch
import torch.nn.functional as F

from thawkit.errors import ThawkitError
from thawkit.ops.frozen.pad import zero_pad

SIDES = [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 3, 1), (0, 0, 0, 0)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_torchs_padding_in_the_order_of_its_input(sides, order, dtype):
    x = torch.randn(2, 3, 5, 4, dtype=dtype).to(memory_format=order).requires_grad_()
    ours, torchs = zero_pad(x, *sides), F.pad(x, sides)
    weights = torch.randn(ours.shape, dtype=dtype)
    assert torch.equal(ours, torchs)
    assert ours.is_contiguous(memory_format=order)
    mine, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, torchs))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x,
        lambda x: x[:, :4],
        lambda x: x[:, :, 1:],
        lambda x: x[:1, :, :, 1:],
        lambda x: x[:, :1],
        lambda x: x[:, :, :1, :1],
    ],
)
def test_parts_of_images_lie_as_torchs_padding_has_them(part):
    x = part(torch.randn(2, 8, 5, 4).to(memory_format=torch.channels_last))
    for sides in SIDES:
        ours, torchs = zero_pad(x, *sides), F.pad(x, sides)
        assert torch.equal(ours, torchs)
        assert ours.stride() == torchs.stride()


def test_a_gradient_is_not_shared_with_who_gave_it():
    x, given = torch.ones(1, 2, 3, 3, requires_grad=True), torch.ones(1, 2, 3, 3)
    zero_pad(x, 0, 0, 0, 0).backward(given)
    assert x.grad is not None
    assert x.grad.data_ptr() != given.data_ptr()


def test_empty_images_and_second_derivatives():
    assert zero_pad(torch.empty(0, 3, 4, 4), 1, 0, 1, 0).shape == (0, 3, 5, 5)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: zero_pad(x, 1, 2, 0, 1).square(), x)


def test_errors_name_what_is_wrong():
    with pytest.raises(ThawkitError, match=r"x must be \(N, C, H, W\), got shape \(3, 4\)"):
        zero_pad(torch.ones(3, 4), 1, 1, 1, 1)
    with pytest.raises(ThawkitError, match="padding must be at least 0, got"):
        zero_pad(torch.ones(1, 1, 3, 4), 1, -1, 1, 1)
