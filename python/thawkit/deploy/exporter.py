"""Export a network as a bundle: a folder that runs on a device without torch or thawkit."""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from thawkit import __version__
from thawkit.deploy import runner, runtime
from thawkit.deploy.bundle import Bundle, thawkit_errors
from thawkit.deploy.folder import new_folder
from thawkit.deploy.graph import OPSET, Pipeline, build, pipeline
from thawkit.deploy.parity import (
    PROBE_SIZES,
    Logits,
    Parity,
    Pixels,
    Samples,
    compare,
    require_classes,
    resized,
)
from thawkit.errors import ThawkitError

if TYPE_CHECKING:
    from thawkit.data import ImageDataset, Preprocess

GOLDEN_SAMPLES = 4
GOLDEN_SIDE = 512
"""Golden samples are shrunk to this many pixels a side, so that the bundle stays small."""


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` wrote and found."""

    folder: Path
    name: str
    classes: tuple[str, ...]
    parity: Parity
    model_bytes: int
    """Size of ``model.onnx``."""
    bytes: int
    """Size of all files of the bundle."""
    seconds: float
    """Wall time of the export, with the parity check."""
    notes: tuple[str, ...]
    """Warnings that came up on the way, a line each."""


def export(
    module: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    output: str | Path,
    *,
    samples: ImageDataset | Sequence[Tensor] | Tensor,
    tolerance: float = 1e-4,
    name: str | None = None,
    overwrite: bool = False,
    trained_on: Sequence[Mapping[str, Any]] = (),
) -> ExportReport:
    """Write a bundle and prove that it agrees with torch; otherwise leave nothing behind.

    The graph takes ``image``, uint8 RGB (N, H, W, 3) of any N, H and W, and gives ``logits`` and
    ``probabilities``, float32 (N, classes). Copies of ``module`` and ``preprocess`` are exported, on the CPU
    in evaluation mode and float32; the originals are not touched.

    Args:
        module: float32 (N, 3, size, size) to logits (N, classes).
        preprocess: uint8 (N, 3, H, W) to the module's input.
        classes: the names of the logits, in order, all different.
        output: the folder to make. It appears whole, by a rename, when everything has passed.
        samples: a data set of the same classes, or uint8 images (3, H, W) in a list or one tensor. All are
            used for the parity check, and a few go into the bundle with their logits by torch, for
            ``run.py --check`` on the device.
        tolerance: largest absolute difference of any logit between torch and onnxruntime.
        name: of the bundle; by default that of the folder.
        overwrite: replace a bundle that lies at ``output``.
        trained_on: the data of the training, as :class:`thawkit.tune.Run` holds them. They go into the
            manifest, but for where they lay, so that ``thawkit verify --data`` splits off the same images.

    Raises:
        ParityError: a logit is off by more than ``tolerance``, or a top-1 class differs.
        MissingDependencyError: onnxruntime is not installed.
        ThawkitError: a bad argument, or a network that torch cannot export.
    """
    start = time.perf_counter()
    runtime.require()
    output = Path(output)
    names = _checked_classes(classes)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ThawkitError(f"tolerance must be a finite number of at least 0, got {tolerance}")
    images = Samples(samples)
    torch_pipeline = pipeline(module, preprocess)
    _check_output(torch_pipeline, images.pixels(0), names)
    if not isinstance(samples, Sequence | Tensor):
        require_classes("samples", samples, names, "the model")
    name = name or output.resolve().name
    with new_folder(output, overwrite=overwrite) as folder:
        model, notes = build(torch_pipeline, name)
        onnx.save(model, folder / "model.onnx")
        parity = _check_parity(folder / "model.onnx", torch_pipeline, images, tolerance)
        _write_samples(folder, torch_pipeline, images)
        shutil.copyfile(Path(runner.__file__), folder / "run.py")
        _write_manifest(folder, _description(name, names, model, preprocess, parity, trained_on))
        Bundle(folder).check_samples()
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        model_bytes = (folder / "model.onnx").stat().st_size
    if module.training:
        notes.append("the module was in training mode; it was exported in evaluation mode")
    seconds = time.perf_counter() - start
    return ExportReport(output, name, names, parity, model_bytes, total, seconds, tuple(notes))


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(classes)
    if isinstance(classes, str) or not names or not all(isinstance(c, str) and c for c in names):
        raise ThawkitError(f"classes must be a sequence of names, got {classes!r}")
    if len(set(names)) < len(names):
        raise ThawkitError(f"classes must all differ, got {', '.join(names)}")
    return names


def _logits(network: Pipeline, batch: Pixels) -> Logits:
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(batch)))[0].numpy()


def _check_output(network: Pipeline, pixels: Pixels, classes: tuple[str, ...]) -> None:
    with torch.no_grad():
        inputs = network.preprocess(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2))
        output = network.network(inputs)
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = (
            f"a tensor of shape {tuple(output.shape)}"
            if isinstance(output, Tensor)
            else type(output).__name__
        )
        raise ThawkitError(f"module must give a tensor of logits (N, classes), got {found}")
    if output.shape[1] != len(classes):
        raise ThawkitError(f"classes has {len(classes)} names, but module gives {output.shape[1]} logits")
    if not output.isfinite().all():
        raise ThawkitError("module gives NaN or infinite logits on the first of samples")


def _check_parity(path: Path, network: Pipeline, samples: Samples, tolerance: float) -> Parity:
    with thawkit_errors():
        session = runner.open_session(path)
        return compare(
            samples,
            lambda batch: _logits(network, batch),
            lambda batch: runner.run_session(session, batch),
            tolerance,
        )


def _write_samples(folder: Path, network: Pipeline, samples: Samples) -> None:
    """Write a few images as PNG with the logits that torch gives for them; the last has an odd size."""
    golden = [_shrunk(samples.pixels(index)) for index in samples.spread(GOLDEN_SAMPLES)]
    golden.append(resized(golden[0], *PROBE_SIZES[0]))
    (folder / "samples").mkdir()
    expected = []
    for index, pixels in enumerate(golden):
        file = f"samples/{index}.png"
        Image.fromarray(pixels).save(folder / file)
        expected.append({"file": file, "logits": _logits(network, pixels[None])[0].tolist()})
    _write_json(folder / "samples" / "expected.json", expected)


def _shrunk(pixels: Pixels) -> Pixels:
    scale = GOLDEN_SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    return resized(pixels, *(max(1, round(side * scale)) for side in pixels.shape[:2]))


def _description(
    name: str,
    classes: tuple[str, ...],
    model: onnx.ModelProto,
    preprocess: Preprocess,
    parity: Parity,
    trained_on: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    output = {"dtype": "float32", "shape": ["N", len(classes)]}
    return {
        "format": runner.FORMAT,
        "format_version": runner.FORMAT_VERSION,
        "name": name,
        "task": "image-classification",
        "classes": list(classes),
        "model": {"file": "model.onnx", "opset": OPSET, "ir_version": model.ir_version},
        "input": {"name": "image", "dtype": "uint8", "shape": ["N", "H", "W", 3], "colour": "RGB"},
        "outputs": [{"name": "logits", **output}, {"name": "probabilities", **output}],
        "preprocess": {"inside_graph": True, **preprocess.config()},
        # The bundle goes to other people's machines: the data's name goes along, not where they lay.
        "trained_on": [{key: value for key, value in data.items() if key != "spec"} for data in trained_on],
        "parity": asdict(parity),
        "samples": {"file": "samples/expected.json", "tolerance": parity.tolerance},
        "tools": _tools(),
    }


def _tools() -> dict[str, str]:
    tools = {"python": platform.python_version(), "thawkit": __version__}
    for package in ("torch", "onnx", "onnxscript", *runtime.PACKAGES):
        try:
            tools[package] = version(package)
        except PackageNotFoundError:
            continue
    return tools


def _write_manifest(folder: Path, description: dict[str, Any]) -> None:
    """Write the description with the size and SHA-256 of every file so far, and a digest of itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": runner.sha256(path)}
        for path in files
    }
    manifest = {**description, "files": entries}
    _write_json(folder / "manifest.json", {**manifest, "digest": runner.manifest_digest(manifest)})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
