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


def test_what_was_in_memory_does_not_show():
    torch.full((2, 3, 7, 7), torch.nan)  # fills what is handed out next
    x = torch.zeros(2, 3, 5, 5)
    assert (zero_pad(x, 1, 1, 1, 1) == 0).all()


def test_empty_images_and_second_derivatives():
    assert zero_pad(torch.empty(0, 3, 4, 4), 1, 0, 1, 0).shape == (0, 3, 5, 5)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: zero_pad(x, 1, 2, 0, 1).square(), x)


def test_errors_name_what_is_wrong():
    with pytest.raises(ThawkitError, match=r"x must be \(N, C, H, W\), got shape \(3, 4\)"):
        zero_pad(torch.ones(3, 4), 1, 1, 1, 1)
    with pytest.raises(ThawkitError, match="padding must be at least 0, got"):
        zero_pad(torch.ones(1, 1, 3, 4), 1, -1, 1, 1)
