"""The bundle reader of the package: the very code of ``run.py``, raising thawkit's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from thawkit.deploy import runner, runtime
from thawkit.deploy.parity import ParityError
from thawkit.errors import ThawkitError


@contextmanager
def thawkit_errors() -> Iterator[None]:
    """Turn the errors of :mod:`thawkit.deploy.runner`, which may not import thawkit, into thawkit's."""
    try:
        yield
    except runner.SampleError as error:
        raise ParityError(str(error)) from error
    except (runner.BundleError, runner.ImageError) as error:
        raise ThawkitError(str(error)) from error


class Bundle(runner.Bundle):
    """A bundle folder opened for prediction; its files are checked against the manifest first.

    Attributes: ``folder``, ``manifest`` (the parsed ``manifest.json``), ``name``, ``classes``.

    Args:
        folder: the bundle.
        device: ``cpu`` or ``cuda``.
        threads: of onnxruntime; 0 means one a core.

    Raises:
        ThawkitError: the bundle is damaged or does not run on ``device``; MissingDependencyError without
            onnxruntime.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu", threads: int = 0) -> None:
        runtime.require()
        if device not in runner.PROVIDERS:
            raise ThawkitError(f"device must be one of {', '.join(runner.PROVIDERS)}, got {device!r}")
        with thawkit_errors():
            super().__init__(folder, device=device, threads=threads)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Run a batch of images of one size: uint8 RGB (N, H, W, 3) to float32 (N, classes)."""
        with thawkit_errors():
            return super().logits(images)

    def predict(self, images: Any) -> list[runner.Prediction]:
        """Classify one image or an iterable of them: paths, PIL images or uint8 arrays (H, W, 3).

        Each :class:`~thawkit.deploy.runner.Prediction` has ``label``, ``probability`` and ``scores`` (every
        class with its probability, most probable first).
        """
        with thawkit_errors():
            return super().predict(images)

    def check_samples(self) -> runner.Difference:
        """Replay the bundle's samples; raises :class:`~thawkit.deploy.ParityError` where one is off."""
        with thawkit_errors():
            return super().check_samples()
