#!/usr/bin/env python3
"""Classify images with the bundle that this file lies in. Needs onnxruntime, numpy and pillow, nothing else.

    python run.py photo.jpg more.png folder/ --top 3
    python run.py --check              replay the bundle's own samples on this machine

From Python: ``from run import Bundle; Bundle().predict(["photo.jpg"])[0].label``.
Exit status: 0 done, 1 an image could not be read or a sample differs, 2 the bundle or the call is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"run.py: error: {missing}; pip install onnxruntime numpy pillow")

FORMAT = "thawkit-bundle"
FORMAT_VERSION = 1
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_ELONGATION = 100
"""Longest side over shortest: beyond it the resize before the crop would need gigabytes."""
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class BundleError(ValueError):
    """The bundle is damaged or incomplete, or cannot run here."""


class SampleError(BundleError):
    """The model gives other logits on the bundle's own samples than it gave at export."""


class ImageError(ValueError):
    """One image cannot be used."""


class Prediction(NamedTuple):
    """The answer for one image."""

    label: str
    """The most probable class."""
    probability: float
    """Its probability."""
    scores: dict[str, float]
    """Every class with its probability, most probable first."""


class Difference(NamedTuple):
    """What replaying the samples found."""

    samples: int
    """How many samples were run."""
    maximum: float
    """Largest absolute difference of a logit from the expected one."""
    tolerance: float
    """Largest difference allowed."""


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own ``digest``, whatever its spacing and order of keys."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises :class:`BundleError` where it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing from {path.parent}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} is damaged: {one_line(error)}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json`` and check its format, its digest and the entries that are used here."""
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: not a folder")
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"manifest.json in {folder} is not that of a thawkit bundle")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"manifest.json has format version {version}, this runner reads {FORMAT_VERSION}")
    if manifest.get("digest") != manifest_digest(manifest):
        raise BundleError("manifest.json was changed after the export: it does not match its own digest")
    kinds = {"name": str, "classes": list, "model": dict, "samples": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"manifest.json: {key!r} is missing or not a {kind.__name__}")
    needed = {"run.py", manifest["model"].get("file"), manifest["samples"].get("file")}
    if not needed <= manifest["files"].keys():
        raise BundleError("manifest.json: 'files' lacks the model, the samples or run.py")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *, unknown: bool = False) -> None:
    """Check presence, size and SHA-256 of all files; with ``unknown``, also that no other file lies there."""
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{name} is missing from {folder}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise BundleError(f"{name} is damaged: {size} bytes, {entry['bytes']} expected")
        if sha256(path) != entry["sha256"]:
            raise BundleError(f"{name} is damaged: its SHA-256 is not the one in the manifest")
    if unknown:
        known = {"manifest.json", *manifest["files"]}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            # importing run.py leaves a compiled copy behind
            if not path.is_dir() and "__pycache__" not in path.parts and name not in known:
                raise BundleError(f"{name} does not belong to the bundle: the manifest does not list it")


def read_image(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Return an image as uint8 RGB (H, W, 3), turned upright by its EXIF tag; grey becomes three channels.

    ``source`` is a path, a PIL image, or a uint8 array (H, W) or (H, W, 3). Raises :class:`ImageError`.
    """
    name = source if isinstance(source, (str, Path)) else "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = source if isinstance(source, np.ndarray) else _decode(source)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ELONGATION * min(height, width):
            raise ValueError(f"{width}x{height} pixels is too elongated, {MAX_ELONGATION}:1 at most")
        return pixels
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not an image, or damaged at its start"
    except Exception as error:  # on a damaged file pillow's decoders raise nearly anything
        reason = one_line(error)
    raise ImageError(f"cannot read {name}: {reason}")


def _decode(source: str | Path | Image.Image) -> np.ndarray:
    image = source if isinstance(source, Image.Image) else Image.open(source)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def open_session(model: Path, *, device: str = "cpu", threads: int = 0) -> Any:
    """Load an ONNX file into an onnxruntime session.

    Raises :class:`BundleError` where it does not load or the device is not there, and ImportError where
    onnxruntime is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from None
    providers = PROVIDERS[device]
    # onnxruntime falls back to the CPU in silence, so ask both what there is and what was taken.
    if providers[0] not in ort.get_available_providers():
        raise BundleError(
            f"device {device}: the installed onnxruntime {ort.__version__} has no {providers[0]}"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise BundleError(f"{model.name} does not load in onnxruntime: {one_line(error)}") from None
    if session.get_providers()[0] != providers[0]:
        raise BundleError(f"device {device}: onnxruntime could not start it and fell back to the CPU")
    return session


def run_session(session: Any, images: np.ndarray) -> np.ndarray:
    """Run uint8 (N, H, W, 3) to float32 logits (N, classes); raises :class:`BundleError` where it fails."""
    try:
        return session.run(["logits"], {"image": np.ascontiguousarray(images)})[0]
    except Exception as error:  # as above; running out of memory ends here too
        raise BundleError(f"the model fails on images of shape {images.shape}: {one_line(error)}") from None


class Bundle:
    """A bundle folder, opened for prediction after its files were checked against the manifest.

    ``folder`` is by default the one that this file lies in; ``device`` is ``cpu`` or ``cuda``; ``threads`` 0
    means one a core. Raises :class:`BundleError`.
    """

    def __init__(self, folder: str | Path | None = None, *, device: str = "cpu", threads: int = 0) -> None:
        self.folder = Path(__file__).resolve().parent if folder is None else Path(folder)
        self.manifest = read_manifest(self.folder)
        check_files(self.folder, self.manifest)
        self.name: str = self.manifest["name"]
        self.classes: list[str] = self.manifest["classes"]
        model = self.folder / self.manifest["model"]["file"]
        self.session = open_session(model, device=device, threads=threads)
        outputs = {output.name: output.shape for output in self.session.get_outputs()}
        if [node.name for node in self.session.get_inputs()] != ["image"] or "logits" not in outputs:
            raise BundleError(f"{model.name} must have one input, image, and an output, logits")
        if outputs["logits"][-1] != len(self.classes):
            raise BundleError(
                f"{model.name} has {outputs['logits'][-1]} logits, the manifest {len(self.classes)} classes"
            )

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Run a batch of images of one size: uint8 RGB (N, H, W, 3) to float32 (N, classes)."""
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ImageError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {shape}")
        return run_session(self.session, images)

    def predict(self, images: Any) -> list[Prediction]:
        """Classify images one by one, so that their sizes may differ.

        ``images`` is one image or an iterable of them, each as :func:`read_image` takes it, or a uint8 array
        (N, H, W, 3).
        """
        single = isinstance(images, (str, Path, Image.Image))
        if single or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        return [self._predict(image) for image in images]

    def _predict(self, image: Any) -> Prediction:
        logits = self.logits(read_image(image)[None])[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        probabilities = odds / odds.sum()
        order = np.argsort(-probabilities, kind="stable")
        scores = {self.classes[index]: float(probabilities[index]) for index in order}
        best = self.classes[order[0]]
        return Prediction(best, scores[best], scores)

    def check_samples(self) -> Difference:
        """Replay the bundle's samples; raises :class:`SampleError` where a logit is off."""
        tolerance = float(self.manifest["samples"]["tolerance"])
        expected = read_json(self.folder / self.manifest["samples"]["file"])
        maximum = 0.0
        for sample in expected:
            wanted = np.asarray(sample["logits"], np.float32)
            got = self.logits(read_image(self.folder / sample["file"])[None])[0]
            difference = float(np.abs(got - wanted).max())
            # written so that NaN fails
            if not difference <= tolerance:
                raise SampleError(
                    f"{sample['file']}: logits differ by {difference:.1e} from those at export (tolerance"
                    f" {tolerance:.0e}); top-1 is {self.classes[int(got.argmax())]!r},"
                    f" was {self.classes[int(wanted.argmax())]!r}"
                )
            maximum = max(maximum, difference)
        return Difference(len(expected), maximum, tolerance)


def expand(names: Iterable[str]) -> list[Path]:
    """Replace each folder by the image files below it, sorted; raises :class:`ImageError` if it has none."""
    paths = []
    for path in map(Path, names):
        found = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            found = [p for p in files if not p.name.startswith(".")]
            if not found:
                raise ImageError(f"no image in folder {path}")
        paths += found
    return paths


def classify(bundle: Bundle, paths: Iterable[Path], top: int, as_json: bool) -> int:
    """Print what each image shows, or why it cannot be read; return the exit status."""
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            prediction = bundle.predict(path)[0]
        except ImageError as error:
            print(f"run.py: error: {error}", file=sys.stderr)
            results.append({"image": str(path), "error": str(error)})
            continue
        scores = dict(list(prediction.scores.items())[:top])
        results.append({"image": str(path), "label": prediction.label, "scores": scores})
        if not as_json:
            print(f"{path}: " + ", ".join(f"{label} {score:.1%}" for label, score in scores.items()))
    if as_json:
        print(json.dumps(results, indent=1))
    return int(any("error" in result for result in results))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="print the K most probable classes")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--check", action="store_true", help="replay the bundle's own samples first")
    parser.add_argument("--device", choices=list(PROVIDERS), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 means one a core")
    args = parser.parse_args(argv)
    if args.top < 1 or args.threads < 0:
        parser.error("--top must be at least 1 and --threads at least 0")
    if not args.images and not args.check:
        parser.error("name an image or a folder, or give --check")
    try:
        paths = expand(args.images)
        bundle = Bundle(device=args.device, threads=args.threads)
        if args.check:
            samples, maximum, tolerance = bundle.check_samples()
            summary = f"{samples} samples agree to {maximum:.1e} (tolerance {tolerance:.0e})"
            print(summary, file=sys.stderr if args.json else sys.stdout)
        return classify(bundle, paths, args.top, args.json) if paths else 0
    except (SampleError, ImageError) as error:
        status, message = 1, str(error)
    except (BundleError, ImportError) as error:
        status, message = 2, str(error)
    print(f"run.py: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
