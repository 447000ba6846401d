"""Where there is a GPU, what else is interpreted runs there: these are tests of it then."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them for ``pytest -m gpu``."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.gpu)


def counted_products(monkeypatch: pytest.MonkeyPatch, engine: ModuleType) -> list[int]:
    """A list that gets a 1 for each product of ``engine``, whether it is returned or added to something."""
    made: list[int] = []
    for name in ("product", "add_product"):
        original = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *args, f=original: (made.append(1), f(*args))[1])
    return made
