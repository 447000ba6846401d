"""The losses with margins on the CUDA backend, its kernels those built for the CPU, against float64.

Rows hold -1 and 1 as many times as not, so that their distances are exact and ties are ties in float64 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import relative_error, values_and_gradients
from tests.ops.pairwise.test_margin import (
    DISTANCES,
    MININGS,
    classes_of,
    pairs,
    signs,
    triplets,
    with_one_that_holds,
)
from thawkit import ops
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_panels
from thawkit.ops.pairwise.margin import KINDS

pytestmark = pytest.mark.usefixtures("on_cuda")


@pytest.fixture(params=["one panel", "panels of a few rows"])
def panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one panel":
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 1500)


def assert_equal_to_float64(
    function: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 5e-6
) -> None:
    got = values_and_gradients(function, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, *(x.double() for x in inputs))
    assert max(relative_error(a, b) for a, b in zip(got, truth, strict=True)) < tolerance


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("reduction", ["none", "mean_nonzero"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
def test_triplets_equal_float64(mining: str, distance: str, reduction: str) -> None:
    options = {"mining": mining, "distance": distance, "reduction": reduction}
    for rows, classes in ((1, 1), (7, 2), (53, 9)):
        alone = triplets(classes_of(rows, classes), **options)
        assert_equal_to_float64(alone, signs(rows), torch.tensor(0.21))
    with_others = triplets(classes_of(31, 7), classes_of(22, 7, seed=1), **options)
    assert_equal_to_float64(with_others, signs(31), signs(22, seed=1), torch.tensor(0.21))


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_pairs_equal_float64(distance: str, reduction: str) -> None:
    margins = (3.1, 5.7) if distance == "euclidean" else (0.3, 1.1)
    for rows, classes in ((1, 1), (7, 2), (53, 9)):
        z = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
        function = pairs(classes_of(rows, classes), distance=distance, reduction=reduction)
        assert_equal_to_float64(function, z, *map(torch.tensor, margins), tolerance=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_occur_often_and_half_precision(kind: str) -> None:
    """Sixteen different rows: most distances are ties, or 0, where the gradient is 0."""
    z, labels = signs(40, features=4), classes_of(40, 4)
    function, margins = pairs(labels, reduction="sum"), [torch.tensor(0.25), torch.tensor(3.5)]
    if kind != "contrastive":
        function, margins = triplets(labels, mining=kind, reduction="sum"), margins[:1]
    assert_equal_to_float64(function, z, *margins)
    full = values_and_gradients(function, z, *margins)
    for dtype in (torch.float16, torch.bfloat16):
        halves = values_and_gradients(function, *(x.to(dtype) for x in (z, *margins)))
        for half, wide in zip(halves, full, strict=True):
            torch.testing.assert_close(half, wide.to(half.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_special_values_come_out_where_the_definition_has_them(kind: str, value: float) -> None:
    z, labels = with_one_that_holds(value, signs(30)), classes_of(31, 4)
    function, margins = pairs(labels, reduction="none"), [torch.tensor(0.3), torch.tensor(1.1)]
    if kind != "contrastive":
        function, margins = triplets(labels, mining=kind, reduction="none"), margins[:1]
    loss, dz, *_ = values_and_gradients(function, z, *margins)
    with ops.use_backend("reference"):
        truth, exact, *_ = values_and_gradients(function, z, *margins)
    torch.testing.assert_close(loss, truth, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert torch.equal(dz.isnan(), exact.isnan())


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("mining", MININGS)
def test_only_wanted_gradients(mining: str, wanted: list[int]) -> None:
    inputs = signs(20), signs(33, seed=1), torch.tensor(0.21)
    function = triplets(classes_of(20, 5), classes_of(33, 5, seed=1), mining=mining)
    full = values_and_gradients(function, *inputs)[1:]
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    found = torch.autograd.grad(function(*leaves) * 0.5, [leaves[i] for i in wanted])
    torch.testing.assert_close(list(found), [full[i] for i in wanted], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mining", MININGS)
def test_no_columns(mining: str) -> None:
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    options = {"mining": mining, "reduction": "none", "ref": nothing, "ref_labels": none}
    assert F.triplet_margin(nothing, none, **options).shape == (0,)
    assert (F.triplet_margin(torch.ones(3, 4), torch.arange(3), **options) == 0).all()
