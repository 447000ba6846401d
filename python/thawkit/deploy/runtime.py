"""Which onnxruntime is installed. Two packages provide the module, and they overwrite each other's files."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from thawkit.errors import MissingDependencyError, ThawkitWarning

PACKAGES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Status:
    """What is installed, by package metadata alone."""

    installed: dict[str, str]
    """Package name to version, of those in :data:`PACKAGES` that are installed."""
    advice: str
    """One line that says what to do, or an empty string where all is well."""

    @property
    def ok(self) -> bool:
        """Whether exactly one of the packages is installed, and whole."""
        return not self.advice


def status() -> Status:
    """Say which onnxruntime packages are installed and what is wrong with that; imports nothing heavy."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    # A name without files (its twin's uninstall took them) is found as a namespace, which has no origin.
    spec = importlib.util.find_spec("onnxruntime")
    whole = spec is not None and spec.origin is not None
    if len(installed) > 1:
        advice = (
            "onnxruntime and onnxruntime-gpu overwrite each other:"
            " pip uninstall -y onnxruntime onnxruntime-gpu,"
            ' then pip install "thawkit[cpu]" or "thawkit[gpu]"'
        )
    elif installed and not whole:
        package = next(iter(installed))
        advice = f"{package} lost its files to its twin's uninstall: pip install --force-reinstall {package}"
    elif not whole:
        advice = 'onnxruntime is not installed: pip install "thawkit[cpu]" (or "thawkit[gpu]" with CUDA)'
    else:
        advice = ""
    return Status(installed, advice)


def require() -> None:
    """Make sure that onnxruntime can be imported.

    Raises:
        MissingDependencyError: it is not installed or not whole; the message names the extra.

    Warns:
        ThawkitWarning: both packages are installed, so that which one runs is a matter of chance.
    """
    found = status()
    if len(found.installed) > 1:
        warnings.warn(found.advice, ThawkitWarning, stacklevel=3)
    elif not found.ok:
        raise MissingDependencyError(found.advice)
