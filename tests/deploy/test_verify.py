import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from thawkit.data import ImageDataset
from thawkit.deploy import Bundle, ParityError, runner, verify
from thawkit.errors import ThawkitError

from .conftest import CLASSES


def edit_manifest(bundle: Path, change: Callable[[dict], object], *, seal: bool = False) -> None:
    """Change the manifest, and with ``seal`` make its digest right again."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if seal:
        manifest["digest"] = runner.manifest_digest(manifest)
    path.write_text(json.dumps(manifest))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


FILES = ("model.onnx", "run.py", "samples/0.png", "samples/expected.json")


def test_sound_bundle(exported):
    report = verify(exported[1])
    assert (report.name, report.classes, report.samples, report.dataset) == ("pets", CLASSES, 5, None)
    assert report.max_difference < 1e-5 <= report.tolerance == 1e-4
    assert report.files == len(FILES) + 4
    assert report.bytes == exported[0].bytes - (exported[1] / "manifest.json").stat().st_size


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_byte, "is damaged: its SHA-256 is not the one in the manifest"),
        (truncate, r"is damaged: \d+ bytes, \d+ expected"),
        (os.remove, "is missing from"),
    ],
    ids=["flipped bit", "truncated", "removed"],
)
def test_damaged_file_is_named(bundle, name, damage, says):
    damage(bundle / name)
    with pytest.raises(ThawkitError, match=f"^{name} {says}") as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: flip_byte(b / "manifest.json"), "^manifest.json"),
        (lambda b: truncate(b / "manifest.json"), "^manifest.json is damaged: "),
        (lambda b: (b / "manifest.json").write_text("{"), "^manifest.json is damaged: "),
        (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe"), "^manifest.json is damaged: "),
        (lambda b: (b / "manifest.json").write_text("[]"), "is not that of a thawkit bundle"),
        (lambda b: os.remove(b / "manifest.json"), "^manifest.json is missing from"),
        (lambda b: edit_manifest(b, lambda m: m["classes"].reverse()), "was changed after the export"),
        (
            lambda b: edit_manifest(b, lambda m: m["parity"].update(tolerance=9.0)),
            "was changed after the export",
        ),
        (lambda b: edit_manifest(b, lambda m: m.pop("digest")), "was changed after the export"),
        (lambda b: edit_manifest(b, lambda m: m.update(format_version=2), seal=True), "format version 2"),
        (
            lambda b: edit_manifest(b, lambda m: m.pop("classes"), seal=True),
            "'classes' is missing or not a list",
        ),
        (lambda b: edit_manifest(b, lambda m: m["files"].pop("run.py"), seal=True), "'files' lacks"),
        (
            lambda b: edit_manifest(b, lambda m: m["classes"].append("emu"), seal=True),
            "has 3 logits.* 4 classes",
        ),
        (lambda b: (b / "extra.txt").write_text("?"), "^extra.txt does not belong to the bundle"),
        (lambda b: (b / "samples" / "9.png").write_text("?"), "^samples/9.png does not belong"),
        (shutil.rmtree, "^no bundle at .*: not a folder"),
    ],
)
def test_wrong_manifest_or_folder_is_one_line(bundle, damage, says):
    damage(bundle)
    with pytest.raises(ThawkitError, match=says) as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)


def reseal(bundle: Path, name: str) -> None:
    path = bundle / name
    entry = {"bytes": path.stat().st_size, "sha256": runner.sha256(path)}
    edit_manifest(bundle, lambda m: m["files"].update({name: entry}), seal=True)


def test_model_that_answers_otherwise_fails_on_the_samples(bundle):
    model = onnx.load(bundle / "model.onnx")
    bias = next(t for t in model.graph.initializer if tuple(t.dims) == (len(CLASSES),))
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.25), bias.name)
    )
    onnx.save(model, bundle / "model.onnx")
    reseal(bundle, "model.onnx")
    with pytest.raises(ParityError, match=r"^samples/0.png: logits differ by 2.5e-01 .*tolerance 1e-04"):
        verify(bundle)


def test_model_that_does_not_load_is_one_line(bundle):
    (bundle / "model.onnx").write_bytes(b"not protobuf")
    reseal(bundle, "model.onnx")
    with pytest.raises(ThawkitError, match=r"^model\.onnx does not load in onnxruntime: ") as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)


def test_verifying_and_running_write_nothing(bundle):
    paths = [bundle, *bundle.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        verify(bundle)
        Bundle(bundle).predict(bundle / "samples" / "0.png")
        after = {path: path.stat().st_mtime_ns for path in [bundle, *bundle.rglob("*")]}
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        (None, CLASSES, "has no labelled images"),
        ([0, 1], ("cat", "dog"), r"has 2 classes \(cat, dog\), the bundle 3 classes \(cat, dog, owl\)"),
        ([0, 1], ("owl", "dog", "cat"), r"has 3 classes \(owl, dog, cat\), the bundle 3"),
    ],
)
def test_data_set_must_fit(exported, labels, classes, says):
    data = ImageDataset(np.zeros((2, 30, 30), np.uint8), labels, classes, "pets")
    with pytest.raises(ThawkitError, match=says):
        verify(exported[1], dataset=data)
