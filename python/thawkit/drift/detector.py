"""The detector: a reference kept once, and batches checked against it."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thawkit.drift.features import feature_shifts
from thawkit.drift.report import DriftReport
from thawkit.errors import ThawkitError
from thawkit.losses.functional import mmd_test
from thawkit.ops import checks

_FORMAT = 1
_OPTIONS = {"threshold", "permutations", "bandwidths", "names", "seed", "model"}
_MODEL_ROWS = 256  # that go through the model at a time


class DriftDetector:
    """Checks batches of what a model sees against a reference, e.g. features of its validation data.

    A check is the permutation test of MMD (:func:`thawkit.losses.functional.mmd_test`) on features
    standardised by both samples together, and the Kolmogorov-Smirnov test of each feature by itself::

        detector = DriftDetector(validation_features)
        report = detector.check(todays_features)
        print(report)          # verdict, p-value, which features moved most
        detector.save("reference.npz")

    The threshold bounds the false alarms of *one* check: of batches that have not drifted, a share of
    ``threshold`` raises an alarm. Whoever checks every hour at 0.05 has one false alarm in twenty hours. Over
    T checks, ``threshold = a / T`` bounds the chance of any false alarm by a; or ask for several alarms in a
    row. Batches that overlap are not independent. With many rows a shift too small to matter is found too:
    look at how far the features moved.

    Args:
        reference: (N, ...) array or tensor of features, flattened to (N, D); with ``model``, its inputs.
        model: from inputs to (rows, ...) features, in the same form for every batch; a module is put into
            evaluation mode for it. None: what comes are features.
        threshold: the largest p-value that counts as drift, between 0 and 1.
        permutations: of the test; at least ``1 / threshold - 1``.
        bandwidths: as for :func:`~thawkit.losses.functional.mmd_test`; ``median`` is exact, of all pairs.
        names: the features'; None: their numbers.
        keep: of a longer reference so many rows are drawn at random, once.
        seed: of that draw and of the permutations: the same batch gives the same report.

    Raises:
        ThawkitError: too few rows, numbers that are not finite, an argument out of range.
    """

    def __init__(
        self,
        reference: Any,
        *,
        model: nn.Module | Callable[[Any], Any] | None = None,
        threshold: float = 0.05,
        permutations: int = 1000,
        bandwidths: Tensor | tuple[float, int] | str = "median",
        names: Sequence[str] | None = None,
        keep: int = 10_000,
        seed: int = 0,
    ):
        checks.finite("threshold", threshold)
        if not 0 < threshold < 1:
            raise ThawkitError(f"threshold must be between 0 and 1, got {threshold}")
        checks.integer("permutations", permutations, 1)
        if 1 / (1 + permutations) > threshold:
            raise ThawkitError(
                f"permutations must be at least {math.ceil(1 / threshold - 1)} for threshold={threshold}, "
                f"as no p-value is below 1 / (1 + permutations); got {permutations}"
            )
        checks.integer("keep", keep, 2)
        checks.integer("seed", seed)
        self.model = model
        self.threshold = threshold
        self.permutations = permutations
        self.bandwidths = bandwidths
        self.seed = seed
        rows = self._features("reference", reference)
        if rows.shape[0] > keep:
            order = torch.randperm(rows.shape[0], generator=torch.Generator().manual_seed(seed))
            rows = rows[order[:keep]]
        self.reference = rows
        self.names = [str(i) for i in range(rows.shape[1])] if names is None else [str(n) for n in names]
        if len(self.names) != rows.shape[1]:
            raise ThawkitError(
                f"names must name {rows.shape[1]} features, one a column of reference, got {len(self.names)}"
            )

    def check(self, batch: Any) -> DriftReport:
        """Return how ``batch``, (M, ...) in the form of the reference, compares with it.

        Raises:
            ThawkitError: another number of features, fewer than 2 rows, numbers that are not finite.
        """
        rows = self._features("batch", batch)
        n, m = self.reference.shape[0], rows.shape[0]
        if rows.shape[1] != self.reference.shape[1]:
            raise ThawkitError(
                f"batch must have {self.reference.shape[1]} features, as the reference has, "
                f"got {rows.shape[1]}"
            )
        # By both together: that they were told apart must not show, or the test would not be exact.
        both = _in_units(torch.cat((self.reference, rows)))
        features = feature_shifts(both[:n], both[n:], self.names)
        deviation = both.std(0, correction=0)
        both = ((both - both.mean(0)) / deviation.where(deviation > 0, 1.0)).float()
        result = mmd_test(both[:n], both[n:], self.permutations, bandwidths=self.bandwidths, seed=self.seed)
        allowed = (
            math.floor(self.threshold * (1 + self.permutations) + 1e-9) - 1
        )  # permutations that reach it
        return DriftReport(
            drifted=result.p_value <= self.threshold,
            p_value=result.p_value,
            threshold=self.threshold,
            statistic=result.statistic,
            critical_value=result.null_sample.sort(descending=True).values[allowed].item(),
            reference_rows=n,
            batch_rows=m,
            features=features,
        )

    def _features(self, name: str, data: Any) -> Tensor:
        """Return (rows, D) float64 features on the CPU."""
        rows = _numbers(name, data if self.model is None else _through(self.model, name, data))
        rows = rows.to("cpu", torch.float64).reshape(rows.shape[0], math.prod(rows.shape[1:]))
        if rows.shape[0] < 2 or rows.shape[1] == 0:
            raise ThawkitError(f"{name} must have at least 2 rows and 1 feature, got {tuple(rows.shape)}")
        bad = ~rows.isfinite()
        if bool(bad.any()):
            raise ThawkitError(
                f"{name} must be finite, but {int(bad.any(1).sum())} of its {rows.shape[0]} rows are not, "
                f"in {int(bad.any(0).sum())} of {rows.shape[1]} features"
            )
        return rows

    def save(self, path: str | Path) -> None:
        """Write the reference and the options into one ``.npz`` file; the model is not in it."""
        bandwidths = self.bandwidths.tolist() if isinstance(self.bandwidths, Tensor) else self.bandwidths
        options = {
            "format": _FORMAT,
            "threshold": self.threshold,
            "permutations": self.permutations,
            "bandwidths": bandwidths,
            "names": self.names,
            "seed": self.seed,
            "model": self.model is not None,
        }
        with Path(path).open("wb") as file:
            np.savez_compressed(file, reference=self.reference.numpy(), options=json.dumps(options))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | Callable[[Any], Any] | None = None) -> DriftDetector:
        """Return the detector that :meth:`save` wrote, with the model that it had, if any.

        Raises:
            ThawkitError: the file is no such one, or a model is missing or too many.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                reference, options = file["reference"], json.loads(str(file["options"]))
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ThawkitError(f"{path} must be a file that DriftDetector.save wrote ({error})") from error
        if not isinstance(options, dict) or options.get("format") != _FORMAT or not set(options) >= _OPTIONS:
            raise ThawkitError(f"{path} must be a file that DriftDetector.save wrote")
        if options["model"] != (model is not None):
            needs = "needs its model" if options["model"] else "has no model"
            raise ThawkitError(f"the detector in {path} {needs}, got model={model!r}")
        bandwidths = options["bandwidths"]
        if isinstance(bandwidths, list):
            bandwidths = _restored(bandwidths)
        detector = cls(
            reference,  # features already
            threshold=options["threshold"],
            permutations=options["permutations"],
            bandwidths=bandwidths,
            names=options["names"],
            keep=max(len(reference), 2),
            seed=options["seed"],
        )
        detector.model = model
        return detector


def _restored(bandwidths: list) -> Tensor | tuple[float, int]:
    """JSON has lists only: (multiplier, count) is told by its integer."""
    if len(bandwidths) == 2 and isinstance(bandwidths[1], int):
        return bandwidths[0], bandwidths[1]
    return torch.tensor(bandwidths)


def _in_units(rows: Tensor) -> Tensor:
    """Each feature times a power of 2, which changes no digit, so that its squares are float64 numbers."""
    exponents = torch.frexp(rows.abs().amax(0)).exponent.clamp(-1000, 1000)
    return torch.ldexp(rows, -exponents)


def _numbers(name: str, data: Any) -> Tensor:
    try:
        if isinstance(data, Tensor):
            rows = data.detach()
        else:
            array = np.asarray(data)
            # torch has none of the other byte order
            rows = torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False), device="cpu")
    except (TypeError, ValueError) as error:
        came = f"{type(data).__name__} of {data.dtype}" if hasattr(data, "dtype") else type(data).__name__
        raise ThawkitError(f"{name} must be an array or tensor of numbers, got {came}") from error
    if rows.is_complex() or rows.dim() == 0:
        raise ThawkitError(
            f"{name} must hold rows of real numbers, got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows


def _through(model: nn.Module | Callable[[Any], Any], name: str, data: Any) -> Any:
    """Return the model's features of all rows, a part of them at a time."""
    if not isinstance(model, nn.Module):
        return model(data)
    rows = _numbers(name, data)
    parameter = next(iter(model.parameters()), None)
    if parameter is not None:
        rows = rows.to(parameter.device)
        rows = rows.to(parameter.dtype) if rows.is_floating_point() else rows
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(part).cpu() for part in rows.split(_MODEL_ROWS)])
    finally:
        for module, training in modes.items():
            module.training = training


def drift(reference: Any, batch: Any, **options: Any) -> DriftReport:
    """Check one batch against a reference: ``DriftDetector(reference, **options).check(batch)``.

    See :class:`DriftDetector` for arguments, and for what repeated checks need.
    """
    return DriftDetector(reference, **options).check(batch)
