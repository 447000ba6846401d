"""Retrieval on the CUDA backend, built for the CPU, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thawkit import ops
from thawkit.ops.pairwise import gpu_panels, gpu_top_k, top_k
from thawkit.ops.pairwise.top_k import SIMILARITIES

pytestmark = pytest.mark.usefixtures("on_cuda")


@pytest.fixture(params=["one panel", "panels of a few rows and columns"], autouse=True)
def panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one panel":
        monkeypatch.setattr(gpu_top_k, "_WIDTH", 130)
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 4000)


def _integers(rows: int, seed: int) -> Tensor:
    """Rows whose products and distances float32 has exactly, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, 6), generator=generator).float()


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [1, 10, 700])
def test_the_nearest_and_their_order(k: int, similarity: str, excluding: bool) -> None:
    queries, gallery = _integers(9, 0), _integers(600, 1)
    excluded = torch.arange(9) * 3 if excluding else None
    if similarity == "euclidean":
        gallery = torch.cat((gallery, -gallery))  # whose centre is 0
    if similarity == "cosine":  # powers of 2 long, as rows of one number are
        queries, gallery = (
            x * (torch.arange(6) == x.abs().argmax(1, keepdim=True)) for x in (queries, gallery)
        )
    got = top_k(queries, gallery, k, similarity=similarity, excluded=excluded)
    with ops.use_backend("reference"):
        truth = top_k(queries, gallery, k, similarity=similarity, excluded=excluded)
    for a, b in zip(got, truth, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_similarities_equal_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 33, generator=generator).to(dtype) for n in (11, 901))
    values, indices = top_k(queries, gallery, 12)
    truth = queries.double() @ gallery.double().t()
    torch.testing.assert_close(values.double(), truth.topk(12).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.double(), truth.gather(1, indices), rtol=1e-5, atol=1e-5)


def test_no_rows_and_what_is_no_number() -> None:
    values, indices = top_k(torch.ones(2, 3), torch.full((4, 3), torch.nan), 2)
    assert values.isneginf().all()
    assert (indices == -1).all()
    values, indices = top_k(torch.ones(2, 3), torch.ones(0, 3), 2)
    assert values.isneginf().all()
    assert (indices == -1).all()
    assert top_k(torch.ones(0, 3), torch.ones(4, 3), 2)[0].shape == (0, 2)
