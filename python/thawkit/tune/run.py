"""The folder a run leaves behind: what it was asked, its best weights, its history and its metrics.

``run.json`` is written first, ``metrics.json`` last; a folder with both is a finished run.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import thawkit
from thawkit import output_folder
from thawkit.data import Preprocess, Splits, load
from thawkit.errors import ThawkitError, one_line
from thawkit.frozen import FreezeReport
from thawkit.select import Model, create_model
from thawkit.tune.checkpoints import WEIGHTS, write_json
from thawkit.tune.config import TuneConfig
from thawkit.tune.method import Method

RUN, METRICS, HISTORY, CHECKPOINTS = "run.json", "metrics.json", "history.json", "checkpoints"
_OURS = {name + suffix for name in (RUN, METRICS, HISTORY, WEIGHTS) for suffix in ("", ".partial")} | {
    CHECKPOINTS
}
_MAY_CHANGE = ("versions.", "config.workers", "config.device")


@dataclass
class RunResult:
    """A finished run, with the model still in memory.

    Attributes:
        path: the run folder.
        model: the model given to ``fit``, now with the run's weights.
        metrics: ``val``, ``test`` and, with a target, ``target`` (its test images), each as
            :func:`thawkit.tune.classification_metrics`; ``best_epoch``, ``epochs``, ``selection``.
        history: one dict an epoch.
        frozen: what trained, and what that saved.
    """

    path: Path
    model: Model
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    frozen: FreezeReport


@dataclass
class Run:
    """A finished run, read back from its folder.

    Attributes:
        path: the run folder.
        model: with the run's weights, on the CPU, in evaluation mode.
        classes: names in the order of the outputs.
        preprocess: of the model.
        metrics, history: as in :class:`RunResult`.
        data: where the images came from: the arguments of :func:`thawkit.data.load`, a name, a fingerprint.
        target: the same for the target of an adaptation, or None.
        config, method, versions: as written by ``fit``.
    """

    path: Path
    model: Model
    classes: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    data: dict[str, Any]
    target: dict[str, Any] | None
    config: dict[str, Any]
    method: dict[str, Any]
    versions: dict[str, str]

    def load_data(self) -> Splits:
        """Load the data the run was trained on again.

        Raises:
            ThawkitError: it was not made by :func:`thawkit.data.load`, is gone, or has changed since.
        """
        return _load_again(self.data, self.path)

    def load_target(self) -> Splits:
        """Load the target of an adaptation again; errors as :meth:`load_data`."""
        if self.target is None:
            raise ThawkitError(f"{self.path}: this run had no target")
        return _load_again(self.target, self.path, self.classes)


def load_run(path: str | Path, *, model: Model | None = None) -> Run:
    """Read a run folder.

    Args:
        path: the folder given to ``fit`` as ``output``.
        model: the network to put the weights in, where :func:`thawkit.select.create_model` does not know it.

    Raises:
        ThawkitError: no such folder, not a run, an unfinished run, or damaged weights.
    """
    folder = Path(path)
    around = next((parent for parent in folder.absolute().parents[:2] if (parent / RUN).is_file()), None)
    hint = f"; did you mean the run {around}?" if around else ""
    if not folder.is_dir():
        raise ThawkitError(f"run {str(path)!r}: no such folder{hint}")
    if not (folder / RUN).is_file():
        raise ThawkitError(f"{folder} is not a thawkit run: it has no {RUN}{hint}")
    if not (folder / METRICS).is_file():
        raise ThawkitError(f"the run in {folder} is unfinished; continue it with resume=True (--resume)")
    described = _read_json(folder / RUN)
    try:
        model = model or create_model(**described["model"], pretrained=False)
        model.preprocess = Preprocess.from_config(described["preprocess"])
        classes = tuple(described["classes"])
        others = {key: described[key] for key in ("data", "target", "config", "method", "versions")}
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise ThawkitError(f"{folder / RUN} is not as thawkit writes it: {reason}") from error
    load_weights(model, folder / WEIGHTS)
    model.module.eval()
    return Run(
        path=folder,
        model=model,
        classes=classes,
        preprocess=model.preprocess,
        metrics=_read_json(folder / METRICS),
        history=_read_json(folder / HISTORY),
        **others,
    )


def load_weights(model: Model, path: Path) -> None:
    """Put the weights in ``path`` into ``model``.

    Raises:
        ThawkitError: a damaged file, or the weights of another network.
    """
    try:
        model.module.load_state_dict(load_file(path))
    except Exception as error:
        raise ThawkitError(f"cannot load {path}: {one_line(error)}") from error


def describe(
    model: Model, splits: Splits, target: Splits | None, method: Method, config: TuneConfig
) -> dict[str, Any]:
    """Return all that a run depends on, as it goes into ``run.json``."""
    import torch
    import torchvision
    import transformers

    return {
        "model": model.spec,
        "preprocess": model.preprocess.config(),
        "classes": list(splits.classes),
        "policy": config.train,
        "data": _described_data(splits),
        "target": None if target is None else _described_data(target),
        "method": method.config(),
        "config": config.to_dict(),
        "versions": {
            "thawkit": thawkit.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def check_output(folder: Path, *, resume: bool, overwrite: bool) -> set[str]:
    """Return the names of what lies in ``folder``, where a run may be written or resumed there.

    Raises:
        ThawkitError: the folder is in use and neither flag allows it, or holds something else than a run.
    """
    if resume and overwrite:
        raise ThawkitError("resume continues a run, overwrite starts it anew: use one of them")
    present = output_folder.names_in(folder)
    if present and not resume and not overwrite:
        raise ThawkitError(
            f"output {folder} is not empty: continue the run in it with resume (--resume), "
            "start it anew with overwrite (--overwrite), or choose another folder"
        )
    if present and RUN not in present and not present <= _OURS:
        raise ThawkitError(f"output {folder} is not empty and holds no thawkit run; choose another folder")
    return present


def open_run(folder: Path, description: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make ``folder`` hold ``run.json`` with ``description``, or check that it does when resuming.

    Raises:
        ThawkitError: as :func:`check_output`, or the run there was made with other settings or data (named).
    """
    present = check_output(folder, resume=resume, overwrite=overwrite)
    if resume and RUN in present:
        _require_same(_read_json(folder / RUN), description, folder)
        return
    for name in present & _OURS:
        shutil.rmtree(folder / name) if name == CHECKPOINTS else (folder / name).unlink()
    output_folder.make(folder)
    write_json(folder / RUN, description)


def _require_same(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    before, after = dict(_flatten(saved)), dict(_flatten(json.loads(json.dumps(now))))
    changed = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        key = changed[0]
        detail = "" if key.endswith("fingerprint") else f" was {before.get(key)}, is now {after.get(key)}"
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ThawkitError(
            f"cannot resume {folder}: {key} {detail.strip() or 'has changed'}{more}; "
            "use the settings it was started with, or start anew with overwrite (--overwrite)"
        )


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), value


def _described_data(splits: Splits) -> dict[str, Any]:
    return {**(splits.origin or {}), "name": splits.name, "fingerprint": splits.fingerprint()}


def _load_again(data: dict[str, Any], path: Path, classes: tuple[str, ...] | None = None) -> Splits:
    if "spec" not in data:
        raise ThawkitError(
            f"{path}: its data {data['name']!r} was not made by thawkit.data.load; load it yourself"
        )
    splits = load(data["spec"], seed=data["seed"], val=data["val"], test=data["test"], classes=classes)
    if splits.fingerprint() != data["fingerprint"]:
        raise ThawkitError(f"the data {data['spec']} has changed since the run in {path} was trained")
    return splits


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ThawkitError(f"cannot read {path}: {error}") from error
