"""What the proofs share: the CUDA sources built for the CPU, again only when they change."""

from __future__ import annotations

import pytest

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
