"""The hooks on saved tensors in force: checkpoints, and whoever counts or moves what is saved, set them.

torch tells the innermost pair alone, so the others are found by taking them off and putting them on again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch

_torch = torch._C._autograd


def hooks_in_force() -> tuple[Any, ...]:
    """The pairs of hooks, the outermost first."""
    hooks = _taken_off()
    _put_on(hooks)
    return hooks


@contextmanager
def without_hooks_since(hooks: tuple[Any, ...]) -> Iterator[None]:
    """Leave only those in force that are so now and were when ``hooks`` was told."""
    now = _taken_off()
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(now, hooks, strict=False)))
    _put_on(now[:common])
    try:
        yield
    finally:
        _put_on(now[common:])


def _taken_off() -> tuple[Any, ...]:
    hooks = []
    while (pair := _torch._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(pair)
        _torch._pop_saved_tensors_default_hooks()
    return tuple(reversed(hooks))


def _put_on(hooks: Iterable[Any]) -> None:
    for pair in hooks:
        _torch._push_saved_tensors_default_hooks(*pair)
