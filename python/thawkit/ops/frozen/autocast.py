"""What autocast does to torch's products, for Functions of our own, which it does not know.

Such a Function casts by itself. Were the products inside to do so, autocast would remember the copy of a
trainable weight that it made there, without a gradient, and give it to later ones that need it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast has a product of ``x``; None where it leaves ``x`` alone."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    casts = x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else None


def autocast(x: Tensor) -> Tensor:
    """``x`` as autocast gives it to a product."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for a backward pass that runs inside it."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def as_now(function: Callable[..., Tensor], x: Tensor) -> Callable[..., Tensor]:
    """``function``, to be called later and then to see autocast as it is now on the device of ``x``."""
    kind = x.device.type
    return partial(_under, function, kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))


def _under(
    function: Callable[..., Tensor], kind: str, enabled: bool, dtype: torch.dtype, *inputs: Any
) -> Tensor:
    if enabled is torch.is_autocast_enabled(kind) and not enabled:
        return function(*inputs)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):
        return function(*inputs)
