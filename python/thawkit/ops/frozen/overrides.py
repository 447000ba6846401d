"""The protocol by which a kind of tensor says what a function does with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch.overrides import handle_torch_function, has_torch_function_unary

F = TypeVar("F", bound=Callable[..., Any])


def overridable(function: F) -> F:
    """Let the first argument's ``__torch_function__`` answer for ``function``, as for torch's own."""

    @functools.wraps(function)
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(x):
            return handle_torch_function(call, (x,), x, *args, **kwargs)
        return function(x, *args, **kwargs)

    return call  # type: ignore[return-value]  # of the same signature
