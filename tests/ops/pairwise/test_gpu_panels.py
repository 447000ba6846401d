"""How the panels of a GPU's pairwise losses are cut, and that their products are not rounded on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thawkit.ops.pairwise.gpu_panels import PANEL_BYTES, add_product, panel_height, product


class _Precisions(TorchFunctionMode):
    """Notes how the products of a block are to be rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.matmul, Tensor.addmm_):
            self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


def test_products_are_not_made_in_tf32() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with _Precisions() as precisions:
            product(torch.ones(2, 3), torch.ones(3, 2))
            add_product(torch.zeros(2, 2), torch.ones(2, 3), torch.ones(3, 2))
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions.seen == ["ieee", "ieee"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_added_in_place(dtype: torch.dtype) -> None:
    a, b, to = torch.randn(5, 3).to(dtype), torch.randn(3, 4).to(dtype), torch.randn(9, 4)
    expected = to.clone()
    expected[2:7] += a.float() @ b.float()
    add_product(to[2:7], a, b)
    torch.testing.assert_close(to, expected)


@pytest.mark.parametrize("columns", [1, 1000, 65_536, 262_144, 10**9])
def test_height_of_a_panel(columns: int) -> None:
    cached = max(1, PANEL_BYTES // (4 * columns))
    assert panel_height(10**9, columns) == cached
    assert panel_height(3, columns) == min(3, cached)
    assert panel_height(10**9, columns, 1) == cached
    assert cached <= panel_height(10**9, columns, 768) <= max(cached, 8 * cached)
    if columns == 65_536:
        assert panel_height(10**9, columns, 768) == 768
