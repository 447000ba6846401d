"""Transfer learning made cheap: fused losses, partially-frozen backward passes, adaptation, ONNX bundles.

Everything is imported on first use, so that ``import thawkit`` and ``thawkit --help`` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thawkit import adapt, data, deploy, drift, frozen, losses, ops, recipes, select, tune
    from thawkit.errors import ThawkitError
    from thawkit.frozen import FeatureCache, freeze, unfreeze
    from thawkit.frozen.waste import waste

__version__ = "0.1.0"

_SUBMODULES = ("adapt", "data", "deploy", "drift", "frozen", "losses", "ops", "recipes", "select", "tune")
_NAMES = {
    "FeatureCache": "thawkit.frozen",
    "freeze": "thawkit.frozen",
    "unfreeze": "thawkit.frozen",
    "waste": "thawkit.frozen",
    "ThawkitError": "thawkit.errors",
}

__all__ = [
    "FeatureCache",
    "ThawkitError",
    "__version__",
    "adapt",
    "data",
    "deploy",
    "drift",
    "freeze",
    "frozen",
    "losses",
    "ops",
    "recipes",
    "select",
    "tune",
    "unfreeze",
    "waste",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"thawkit.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'thawkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
