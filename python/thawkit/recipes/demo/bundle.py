"""The device half: export, verify, and run the bundle's own script in a process without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thawkit.data import ImageDataset, collate_images
from thawkit.deploy import export, verify
from thawkit.errors import ThawkitError
from thawkit.recipes.demo import settings as fixed
from thawkit.recipes.demo.pictures import to_pil
from thawkit.tune import Run, predict


def export_and_verify(run: Run, test: ImageDataset, output: Path) -> dict[str, Any]:
    """Make the bundle of a run, check it, and time it image by image; return the figures.

    Raises:
        ParityError: the bundle's logits are not torch's.
    """
    made = export(
        run.model.module,
        run.preprocess,
        run.classes,
        output,
        samples=test,
        tolerance=fixed.PARITY,
        name="chest-xray",
        trained_on=[run.data],
    )
    checked = verify(output, dataset=test, threads=torch.get_num_threads())
    assert checked.dataset is not None
    return {
        "files": checked.files,
        "bundle_bytes": made.bytes,
        "onnx_bytes": made.model_bytes,
        "torch_bytes": (run.path / "model.safetensors").stat().st_size,
        "export_seconds": made.seconds,
        "export_difference": made.parity.max_difference,
        "export_images": made.parity.images,
        "accuracy": checked.dataset.accuracy,
        "onnxruntime_p50_ms": checked.dataset.p50_ms,
        "onnxruntime_p95_ms": checked.dataset.p95_ms,
    }


def torch_latency(run: Run, test: ImageDataset, images: int) -> dict[str, float]:
    """Time torch from pixels to logits on single images, in milliseconds, as ``verify`` times the bundle."""
    run.model.module.eval()
    times = []
    with torch.inference_mode():
        for index in range(-1, min(images, len(test))):
            picture = test.image(max(0, index))
            start = time.perf_counter()
            run.model.module(collate_images([picture], run.preprocess))
            times.append(1e3 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times[1:], [50, 95])  # the first run allocates
    return {"torch_p50_ms": float(p50), "torch_p95_ms": float(p95)}


def run_elsewhere(run: Run, test: ImageDataset, bundle: Path) -> dict[str, Any]:
    """Classify the test images as PNG files with ``run.py`` in a process of its own, and compare with torch.

    ``run.py`` prints probabilities. Their logarithms are the logits up to a constant an image, so logits are
    compared after both have had their mean over the classes taken away.

    Raises:
        ThawkitError: ``run.py`` failed; with the last line it wrote.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(len(test)):
            to_pil(test.image(index)).save(Path(scratch) / f"{index:05d}.png")
        command = [sys.executable, str(bundle / "run.py"), scratch, "--json", "--top", str(len(run.classes))]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ThawkitError(f"the bundle's run.py ended with status {done.returncode}: {last}")
    answers = json.loads(done.stdout)
    odds = np.array([[answer["scores"][name] for name in run.classes] for answer in answers])
    there, here = _centred(np.log(odds)), _centred(predict(run.model, test).double().numpy())
    return {
        "images": len(answers),
        "seconds": seconds,
        "max_difference": float(np.abs(there - here).max()),
        "same_top1": int((there.argmax(1) == here.argmax(1)).sum()),
        "accuracy": float((there.argmax(1) == test.labels).mean()),
    }


def _centred(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return logits - logits.mean(axis=1, keepdims=True)
