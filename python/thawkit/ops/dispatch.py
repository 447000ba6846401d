"""Which backend runs an operator: the choice, how to force it, and why one is not available.

``cpu``        C++ SIMD kernels, float32 (and half precision where the operator says so)
``cuda``       CUDA C++ kernels, which need no Triton (Jetson)
``triton``     Triton kernels
``reference``  plain PyTorch: any device, any dtype, double backward, and the definition of the rest

``THAWKIT_BACKEND`` forces one for the process, :func:`use_backend` for a block. ``THAWKIT_MEMORY`` and
:func:`use_memory` do so for how much memory the pairwise losses take on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops._library import in_transform

BACKENDS = ("cpu", "cuda", "triton", "reference")
MEMORY = ("auto", "minimal")
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}

_forced: ContextVar[str | None] = ContextVar("thawkit_backend", default=None)
_memory: ContextVar[str | None] = ContextVar("thawkit_memory", default=None)

# What a kernel cannot take, in words; an empty string where it can.
Objection = Callable[..., str]


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend inside the block; ``None`` restores the automatic choice.

    Raises:
        ThawkitError: ``name`` is not a backend.
    """
    if name is not None and name not in BACKENDS:
        raise ThawkitError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """Return the backend that the block or the environment asks for, if any."""
    name = _wanted_of_old() if _OLD_COMPILER and torch.compiler.is_compiling() else _wanted()
    if name is not None and name not in BACKENDS:
        raise ThawkitError(f"THAWKIT_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def use_memory(name: str | None) -> Iterator[None]:
    """Say how much memory products of rows may take on a GPU inside the block: of losses, MMD and retrieval.

    Args:
        name: ``"auto"`` stores up to 256 MiB of scores at a time where that moves fewer bytes than making
            them anew, by counts: it has not been measured on a GPU. ``"minimal"`` stores none where a fused
            kernel serves, that is in Triton for plain InfoNCE (no labels, margin, queue or other options),
            NT-Xent, CLIP and SigLIP of half precision and at most 128 features, and elsewhere 4 MiB at a
            time, or a row. ``None`` goes by the environment.
            MMD stores 32 MiB of products at a time otherwise. A loss's backward pass goes by what held in its
            forward pass. The CPU has no use for it.

    Raises:
        ThawkitError: ``name`` is neither.
    """
    if name is not None:
        _check_memory("memory", name)
    token = _memory.set(name)
    try:
        yield
    finally:
        _memory.reset(token)


def memory() -> str:
    """Return what the block or the environment says of memory: "auto" or "minimal"."""
    name = _memory_of_old() if _OLD_COMPILER and torch.compiler.is_compiling() else _wanted_memory()
    _check_memory("THAWKIT_MEMORY", name)
    return name


def heeding_memory(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operator's last argument be what :func:`memory` said where it was called.

    Threads of autograd's and compiled graphs have no :func:`use_memory` around them.
    """

    def run(*arguments: Any) -> Any:
        *rest, name = arguments
        with use_memory(name):
            return kernel(*rest)

    return run


def _check_memory(argument: str, name: str) -> None:
    if name not in MEMORY:
        raise ThawkitError(f"{argument} must be one of {', '.join(MEMORY)}, got {name!r}")


def _wanted_memory() -> str:
    return _memory.get() or os.environ.get("THAWKIT_MEMORY") or "auto"


def _wanted() -> str | None:
    return _forced.get() or os.environ.get("THAWKIT_BACKEND") or None


# Before 2.14 torch.compile may not read a ContextVar: what holds while it traces holds for the graph.
_OLD_COMPILER = torch.__version__ < "2.14"  # compares versions, not letters
# Elsewhere this would load all of the compiler, and Triton with it.
_wanted_of_old = torch.compiler.assume_constant_result(_wanted) if _OLD_COMPILER else _wanted
_memory_of_old = torch.compiler.assume_constant_result(_wanted_memory) if _OLD_COMPILER else _wanted_memory


def choose(operator: str, kernels: Mapping[str, Objection], *tensors: Tensor) -> str:
    """Return the backend for these arguments: inside a transform of torch.func, the reference.

    Args:
        operator: name for messages.
        kernels: for each backend but the reference, what it objects to in the tensors.
        tensors: the operator's tensor arguments.

    Raises:
        ThawkitError: a backend was forced that cannot take the arguments; the message says why.
    """
    forced = forced_backend()
    transformed = not torch.compiler.is_compiling() and in_transform()
    if forced == "reference" or (forced is None and transformed):
        return "reference"
    if transformed:
        raise ThawkitError(
            f"{operator}: backend {forced!r} was forced, but only 'reference' runs inside a transform of "
            f"torch.func"
        )
    if forced is not None:
        objection = unavailable(forced) or (
            kernels[forced](*tensors) if forced in kernels else "has no such kernel yet"
        )
        if objection:
            raise ThawkitError(f"{operator}: backend {forced!r} was forced, but it {objection}")
        return forced
    for name in _PREFERENCE.get(tensors[0].device.type, ()):
        if name in kernels and not unavailable(name) and not kernels[name](*tensors):
            return name
    return "reference"


def unavailable(backend: str) -> str:
    """Return why a backend cannot run on this machine, or an empty string."""
    if backend not in _problems:
        _problems[backend] = _problem(backend)
    return _problems[backend]


_problems: dict[str, str] = {}  # a plain dict: torch.compile warns of functools.cache


def _problem(backend: str) -> str:
    if backend == "reference":
        return ""
    if backend == "triton":
        return _triton_problem()
    try:
        from thawkit import _C
    except ImportError as error:
        return f"needs the compiled module thawkit._C, which does not load ({error})"
    if backend == "cpu":
        return ""
    if not _C.has_cuda:
        return "was not compiled in (no CUDA compiler was found when thawkit was built)"
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    if _C.cuda_device_count() < 1:
        return "needs a newer driver: the CUDA runtime that thawkit was built with sees no device, torch does"
    return ""


def _triton_problem() -> str:
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none (TRITON_INTERPRET=1 runs it slowly on a CPU)"
    if not interpreted and torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0 or newer: Triton emits no tensor-core code for older devices"
    try:
        importlib.import_module("triton")
    except Exception as error:  # of a broken library anything
        return f"needs the package triton, which does not load ({error})"
    return ""
