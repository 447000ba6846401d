"""CONTRIBUTING.md walks through one new loss: what it prints is put where it says, and run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"


def blocks() -> dict[str, str]:
    """The code blocks of the walk, by the file that the line before each one names last."""
    section = PAGE.read_text().split("## A new pairwise loss", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"`([\w/]+\.py)`[^`]*\n\n```python\n(.*?)```", section, re.S)
    named = re.findall(r"```python\n", section)
    assert len(found) == len(named) == 4
    return dict(found)


def test_the_walk_through_a_new_loss_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks()
    assert sum(block.count("\n") for block in code.values()) <= 80
    scope: dict = {"torch": torch, "F": F, "ops": ops}
    for path, block in code.items():
        if path.startswith("tests/"):
            exec(compile(block, path, "exec"), scope)
            continue
        name = path.removeprefix("python/").removesuffix(".py").replace("/", ".")
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            module = ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            parent, _, last = name.rpartition(".")
            monkeypatch.setattr(importlib.import_module(parent), last, module, raising=False)
        before = dict(vars(module))
        exec(compile(block, path, "exec"), vars(module))
        for new in set(vars(module)) - set(before):
            value = vars(module).pop(new)
            monkeypatch.setattr(module, new, value, raising=False)
    monkeypatch.setattr(F, "decoupled", F.similarity.decoupled, raising=False)
    scope["test_decoupled_is_its_definition"]()
    with pytest.raises(ThawkitError, match="k must have the shape of q"):
        F.decoupled(torch.zeros(3, 2), torch.zeros(4, 2))
