"""torch's BLAS, looked up in its CPU library and handed to the kernels, which link no libtorch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from thawkit.errors import ThawkitError

_LIBRARY = "libtorch_cpu.so"
# MKL's sgemm of 32-bit integers, and the setter of the calling thread's number of threads: the engine's own
# threads are to be the only ones. OpenBLAS has such a number for the whole process only, which would reach
# into products that others are just computing.
_SYMBOLS = ("sgemm_", "MKL_Set_Num_Threads_Local")


def addresses() -> tuple[int, ...]:
    """Return where the functions are that the kernels call.

    Raises:
        ThawkitError: this torch does not export them.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _LIBRARY))
        functions = [getattr(library, symbol) for symbol in _SYMBOLS]
    except (OSError, AttributeError) as error:
        raise ThawkitError(f"needs {' and '.join(_SYMBOLS)} of MKL in torch's {_LIBRARY}: {error}") from error
    return tuple(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)


@functools.cache
def problem() -> str:
    """Hand the functions to the kernels at first use; return why they cannot be had, or an empty string."""
    from thawkit import _C

    try:
        _C.set_blas(*addresses())
    except ThawkitError as error:
        return str(error)
    return ""
