"""What every CUDA kernel is asked on the CPU."""

from . import channels, focal, margin, max_pool, mmd, pack, pairs, quantize, row_softmax, softmax_focal, top_k
from .registry import CHECKS

KERNELS = list(dict.fromkeys(check.kernel for check in CHECKS))
# the source of csrc/cuda, without its suffix, in which a kernel is
UNITS = {check.kernel: check.function.__module__.rpartition(".")[2] for check in CHECKS}

__all__ = [
    "CHECKS", "KERNELS", "UNITS", "channels", "focal", "margin", "max_pool", "mmd", "pack", "pairs",
    "quantize", "row_softmax", "softmax_focal", "top_k",
]  # fmt: skip
