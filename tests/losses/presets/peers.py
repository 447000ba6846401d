"""How the stand-ins are compared with the libraries themselves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import pytest

from tests.losses import oracle


def library(module: str) -> ModuleType:
    """Return the module, or skip the test and say what brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        skip(error.name)


def skip(name: str) -> NoReturn:
    """Say which library is missing, and what brings it."""
    pytest.skip(f'{name} is not installed, nothing is compared with it (pip install ".[peers]")')


def assert_same(ours: Callable, theirs: Callable, *inputs, rtol=1e-5, atol=2e-6) -> None:
    """Compare values and gradients with those of the library in float64: our own float64, and our float32."""
    oracle.assert_is(ours, theirs, *inputs, rtol=rtol, atol=atol)


def assert_same_arguments(ours: Callable, theirs: Callable, *, but: tuple[str, ...] = ()) -> None:
    """Names, order and defaults, but for the defaults of some; what they pass on by ``**`` comes last."""
    mine, yours = (inspect.signature(f).parameters for f in (ours, theirs))
    passed_on = [p.name for p in yours.values() if p.kind is p.VAR_KEYWORD]
    yours = [p for p in yours.values() if p.name not in passed_on]
    mine = list(mine.values())
    assert [p.name for p in mine[: len(yours)]] == [p.name for p in yours]
    assert [p.kind for p in mine[: len(yours)]] == [p.kind for p in yours]
    for a, b in zip(mine, yours, strict=False):
        if a.name not in but:
            assert a.default == b.default or (a.default is b.default), a.name
    assert passed_on or len(mine) == len(yours)
