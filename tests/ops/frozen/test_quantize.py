"""Rounded tensors: the levels, against their definition in float64, and what comes back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops.frozen import reference
from thawkit.ops.frozen.quantize import Quantized, dequantize, dequantized_product, quantize

from .conftest import LAYOUTS, laid_out

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SIZES = [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 256, 257, 1000, 70_001]


def exact(x: Tensor, bits: int) -> Tensor:
    """The definition in float64."""
    flat = x.flatten().double()
    return reference.dequantize(*reference.quantize(flat, bits), bits, flat.numel()).view(x.shape)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition_in_float64(size: int, dtype: torch.dtype, bits: int) -> None:
    x = (torch.randn(size) * 3 + 1).to(dtype)
    y, truth = dequantize(quantize(x, bits)), exact(x, bits)
    assert y.dtype == dtype
    # A value in the middle between two levels may go to either: both are as near.
    off = (y.double() - truth).abs() > UNIT[dtype] * (4 + truth.abs())
    assert off.sum() <= 1e-3 * size
    assert_close((y.double() - x).abs(), (truth - x).abs(), rtol=0, atol=16 * UNIT[dtype])


@pytest.mark.parametrize("bits", [8, 4])
def test_no_value_moves_further_than_half_a_step(bits: int) -> None:
    x = torch.randn(100, 64)
    step = (x.amax(1) - x.amin(1)) / (2**bits - 1)
    assert ((dequantize(quantize(x, bits)) - x).abs() <= (0.5001 * step).unsqueeze(1)).all()


def test_four_levels_are_means_of_what_they_stand_for() -> None:
    x = torch.randn(40, 256)
    y = dequantize(quantize(x, 2))
    assert all(len(row.unique()) == 4 for row in y)
    assert_close(y.sum(1), x.sum(1), rtol=1e-5, atol=1e-4)
    assert (y - x).square().mean() < 0.125  # the best for normal numbers is 0.1175


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 64), (2, 256)])
def test_bytes(bits: int, group: int) -> None:
    q = quantize(torch.randn(1000), bits)
    assert q.codes.nbytes == 1000 * bits // 8
    assert q.numbers.nbytes == math.ceil(1000 / group) * (16 if bits == 2 else 8)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("value", [0.0, -1.5, 3e38, 1e-30])
def test_one_value_comes_back_as_it_is(value: float, bits: int) -> None:
    x = torch.full((300,), value)
    assert_close(dequantize(quantize(x, bits)), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_large_numbers(bits: int) -> None:
    x = torch.linspace(-1, 1, 64) * 1.6e38
    assert_close(dequantize(quantize(x, bits)), x, rtol=0, atol=1.61e38 / (2**bits - 1))
    assert not dequantize(quantize(2 * x, bits)).isfinite().any()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_group_with_a_number_that_is_not_finite_is_nan(
    value: float, bits: int, backend: str | None
) -> None:
    group = 256 if bits == 2 else 64
    for place in (0, 5, group - 1, 2 * group + 3):
        x = torch.randn(2 * group + 9)
        x[place] = value
        with ops.use_backend(backend):
            y = dequantize(quantize(x, bits))
        assert y.isnan().tolist() == [i // group == place // group for i in range(len(x))]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, bits: int) -> None:
    x = laid_out(torch.randn(3, 8, 5, 7), layout)
    q = quantize(x, bits)
    y = dequantize(q)
    assert y.shape == x.shape
    assert y.stride() == torch.empty_like(x).stride()
    in_memory = y.as_strided((y.numel(),), (1,))
    assert_close(in_memory, exact(torch.empty_like(x).copy_(x).as_strided((x.numel(),), (1,)), bits).float())
    g = torch.randn(x.shape)
    assert torch.equal(dequantized_product(q, g), y * g)
    assert torch.equal(dequantized_product(q, g.transpose(0, 1).contiguous().transpose(0, 1)), y * g)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_float64_and_scalars(bits: int) -> None:
    x = torch.randn(70, dtype=torch.float64)
    assert torch.equal(dequantize(quantize(x, bits)), exact(x, bits))
    assert dequantize(quantize(torch.tensor(2.5), bits)).item() == 2.5


def test_the_product_has_the_dtype_of_the_gradient() -> None:
    q = quantize(torch.randn(100), 8)
    assert dequantized_product(q, torch.randn(100).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_groups(threads: int) -> None:
    x, before = torch.randn(200_003), torch.get_num_threads()
    expected = quantize(x, 4)
    try:
        torch.set_num_threads(threads)
        q = quantize(x, 4)
        assert torch.equal(q.codes, expected.codes)
        assert torch.equal(q.numbers, expected.numbers)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [3, 16, 0, True, "8", None])
def test_bits(bits: object) -> None:
    with pytest.raises(ThawkitError, match="bits must be 8, 4 or 2"):
        quantize(torch.zeros(3), bits)  # type: ignore[arg-type]


def test_what_is_no_tensor_of_floats() -> None:
    with pytest.raises(ThawkitError, match="x must be"):
        quantize(torch.zeros(3, dtype=torch.int64), 8)
    with pytest.raises(ThawkitError, match=r"g must have shape \(3,\), got \(4,\)"):
        dequantized_product(quantize(torch.zeros(3), 8), torch.zeros(4))


def test_operators_under_fake_tensors() -> None:
    x = torch.randn(100)
    q = quantize(x, 4)
    torch.library.opcheck(torch.ops.thawkit.quantize.default, (x, 4))
    arguments = (x, q.codes, q.numbers, 4, [100], [1])
    torch.library.opcheck(torch.ops.thawkit.dequantize.default, (x.new_empty(0), *arguments))
    assert isinstance(q, Quantized)
