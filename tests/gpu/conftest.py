"""What the proofs share, for those that run on a GPU."""

from tests.gpu_proof.conftest import cuda_build, cuda_host

__all__ = ["cuda_build", "cuda_host"]
