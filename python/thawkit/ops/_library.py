"""The ``thawkit`` operator namespace of torch.library, and how kernels see tensors."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitWarning

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the compiled kernels' Dtype

_library = torch.library.Library("thawkit", "DEF")


def define(schema: str, kernel: Callable, fake: Callable) -> Callable:
    """Register an operator that autograd does not see: the gradient belongs to a Function outside it.

    Args:
        schema: e.g. ``"double(Tensor x) -> Tensor"``.
        kernel: runs on CPU and CUDA tensors, the first argument being one or a list of them, on whose device
            CUDA launches; may return None for outputs that nobody asked for.
        fake: returns empty tensors of the right shapes and dtypes.

    Returns:
        What calls the operator; on plain tensors outside of tracing that is the kernel itself, which saves
        20 microseconds.
    """
    name = schema.split("(", 1)[0]

    def on_its_device(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        if not first.is_cuda:
            return kernel(*arguments)
        with torch.cuda.device(first.device):
            return kernel(*arguments)

    def with_all_outputs(*arguments: Any) -> Any:
        results = on_its_device(*arguments)
        if not isinstance(results, tuple) or all(x is not None for x in results):
            return results
        return tuple(y if x is None else x for x, y in zip(results, fake(*arguments), strict=True))

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"thawkit::{name}", ("cpu", "cuda"), with_all_outputs, lib=_library)
    torch.library.register_fake(f"thawkit::{name}", fake, lib=_library)
    overload = getattr(torch.ops.thawkit, name).default

    def operator(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _dispatch_modes() or not _PLAIN.issuperset(map(type, arguments)):
            return overload(*arguments)
        return on_its_device(*arguments)

    return operator


_PLAIN = {Tensor, torch.nn.Parameter, bool, int, float, str, list, type(None)}
# Private to torch, so feature-tested: without it every call goes through the dispatcher.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def holds_numbers(x: Tensor) -> bool:
    """Return whether Python may look at values: not in a graph, a transform, or without storage."""
    if torch.compiler.is_compiling() or _dispatch_modes() or in_transform():
        return False
    return type(x) in _PLAIN and not x.is_meta


# What torch.func.grad, vmap and the like are doing; private to torch, so feature-tested.
_interpreter = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None)


def in_transform() -> bool:
    """Return whether a transform of torch.func runs."""
    return _interpreter() is not None


def outside_transforms() -> contextlib.AbstractContextManager:
    """Return a context in which tensors are plain ones, whatever transform of torch.func runs."""
    return _without_transforms()


# Private to torch, so feature-tested.
_without_transforms = getattr(torch._C, "_DisableFuncTorch", contextlib.nullcontext)


def dtype_objection(*tensors: Tensor) -> str:
    """Return why the kernels cannot take the dtype of one of the tensors ("" if they can)."""
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"takes float32, bfloat16 and float16, not {tensor.dtype}"
    return ""


def takes_only(device: str) -> Callable[..., str]:
    """Return what says why the compiled kernels of ``device`` cannot take some tensors ("" if they can)."""

    def objection(*tensors: Tensor) -> str:
        for tensor in tensors:
            if tensor.device.type != device:
                return f"takes {device.upper()} tensors, not {tensor.device}"
            if problem := dtype_objection(tensor):
                return problem
        return ""

    return objection


@functools.cache
def cpu_kernels() -> ModuleType:
    """Return the compiled module, at first use with a warning if ``THAWKIT_CPU_ISA`` could not be obeyed."""
    from thawkit import _C

    if _C.cpu_problem():
        warnings.warn(
            f"THAWKIT_CPU_ISA asks for {os.environ.get('THAWKIT_CPU_ISA')!r}, but this CPU and build have "
            f"{', '.join(_C.cpu_isas().split())}: the {_C.cpu_isa()} kernels run",
            ThawkitWarning,
            stacklevel=2,
        )
    return _C


def pointer(x: Tensor | None) -> int:
    """Return the address of the data, 0 for None or an empty tensor."""
    return 0 if x is None or x.numel() == 0 else x.data_ptr()


def threads() -> int:
    """Return torch's thread count. OpenMP's own is kept for each Python thread apart, so it is passed on."""
    return torch.get_num_threads()


def stream() -> int:
    """Return the current CUDA stream's handle."""
    return torch.cuda.current_stream().cuda_stream


def empty(like: Tensor) -> Tensor:
    """Return the tensor without elements that stands for an output nobody asked for."""
    return like.new_empty(0)


def apart(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors anew, so that derivatives with respect to one do not go through another.

    A Function whose second argument was computed from its first is to give both their own gradients, and
    autograd adds them up: a backward pass that asks :func:`torch.autograd.grad` for them must not do so too.
    """
    return tuple(None if t is None else t.view_as(t) for t in tensors)


def scaled(gradients: Sequence[Tensor | None], upstream: Tensor, need: Sequence[bool]) -> list[Tensor | None]:
    """Return ``gradient * upstream`` of the saved gradients that are needed, for the caller to overwrite.

    In the usual case, upstream 1 and a graph that is not kept, these are the saved tensors themselves:
    no pass over memory.
    """
    wanted = [x if needed else None for x, needed in zip(gradients, need, strict=True)]
    if not upstream.is_cpu or not holds_numbers(upstream) or upstream.item() != 1.0:
        return [None if x is None else x * upstream.to(x.dtype) for x in wanted]
    return [None if x is None else x.clone() for x in wanted] if _graph_is_kept() else wanted


# Private to torch, so feature-tested: without it every gradient is copied.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
