"""From a trained network to a small device: ONNX export, parity check, bundle folder, verification."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thawkit.deploy.bundle import Bundle
    from thawkit.deploy.exporter import ExportReport, export
    from thawkit.deploy.parity import Parity, ParityError
    from thawkit.deploy.verifier import VerifyReport, verify

# Resolved on first use, so that `thawkit doctor` can ask thawkit.deploy.runtime without importing torch.
_HOMES = {
    "Bundle": "bundle",
    "ExportReport": "exporter",
    "Parity": "parity",
    "ParityError": "parity",
    "VerifyReport": "verifier",
    "export": "exporter",
    "verify": "verifier",
}

__all__ = ["Bundle", "ExportReport", "Parity", "ParityError", "VerifyReport", "export", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"thawkit.deploy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'thawkit.deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
