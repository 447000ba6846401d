"""What the proofs share: the CUDA sources built for the CPU, again only when they change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from thawkit import ops
from thawkit.ops import dispatch
from thawkit.ops._library import dtype_objection
from thawkit.ops.focal.sigmoid import _KERNELS as SIGMOID_FOCAL
from thawkit.ops.focal.softmax import _KERNELS as SOFTMAX_FOCAL
from thawkit.ops.pairwise.margin import OBJECTIONS as MARGIN
from thawkit.ops.pairwise.median import OBJECTIONS as MEDIAN
from thawkit.ops.pairwise.mmd import OBJECTIONS as MMD
from thawkit.ops.pairwise.pairs import OBJECTIONS as PAIRS
from thawkit.ops.pairwise.permutation import OBJECTIONS as PERMUTATION
from thawkit.ops.pairwise.row_softmax import OBJECTIONS as ROW_SOFTMAX
from thawkit.ops.pairwise.top_k import OBJECTIONS as TOP_K

from .cuda_host import Build, Host, missing_tool
from .cuda_host.build import kept


@pytest.fixture(scope="session")
def cuda_build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Objects kept between sessions in pytest's cache."""
    if missing := missing_tool():
        pytest.skip(f"CUDA C++ cannot be built for the CPU: {missing}")
    folder = kept(request.config, "cuda_host")
    return Build(folder, tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture(scope="session")
def cuda_host(cuda_build: Build) -> Host:
    """The CUDA kernels as they stand."""
    return Host(cuda_build.library())


@pytest.fixture
def on_cuda(cuda_host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend ``cuda`` takes tensors of the CPU, and is the one that runs."""
    pairwise = ROW_SOFTMAX, PAIRS, MARGIN, MMD, MEDIAN, PERMUTATION, TOP_K
    for objections in (*pairwise, SIGMOID_FOCAL, SOFTMAX_FOCAL):
        monkeypatch.setitem(objections, "cuda", dtype_objection)
    monkeypatch.setitem(dispatch._problems, "cuda", "")
    with cuda_host.running(), ops.use_backend("cuda"):
        yield
