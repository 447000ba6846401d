"""``run.py`` as a device sees it: a script in a folder, without torch and thawkit."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thawkit import data
from thawkit.deploy import Bundle, runner
from thawkit.errors import ThawkitError

from .conftest import CLASSES, picture

SPY = """
import atexit, runpy, sys
heavy = {"torch", "torchvision", "thawkit", "onnx", "onnxscript", "transformers"}
atexit.register(lambda: print("LOADED", sorted(heavy & set(sys.modules)), file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(bundle: Path, *args: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", "-c", SPY, bundle / "run.py", "--threads=1", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("LOADED []\n")
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with sound images of several kinds, and damaged ones beside it."""
    root = tmp_path_factory.mktemp("pictures")
    good = root / "good"
    (good / "deeper").mkdir(parents=True)
    image = Image.fromarray(picture(60, 80, 5).permute(1, 2, 0).numpy())
    image.save(good / "plain.png")
    image.convert("L").save(good / "grey.png")
    image.convert("RGBA").save(good / "deeper" / "alpha.webp", lossless=True)
    sideways = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    sideways.save(good / "sideways.png", exif=exif)
    (good / ".hidden.png").write_bytes(b"not shown by a file manager either")
    (good / "notes.txt").write_text("not an image")
    (root / "truncated.png").write_bytes((good / "plain.png").read_bytes()[:900])
    (root / "text.jpg").write_text("not an image")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "deep.png")
    Image.new("RGB", (2000, 3)).save(root / "thin.png")
    return root


def test_probabilities_are_those_of_torch(exported, pictures, network, preprocess, empty_cwd):
    files = ["deeper/alpha.webp", "grey.png", "plain.png", "sideways.png"]
    done = run(exported[1], pictures / "good", "--json", "--top=2")
    assert done.returncode == 0
    answers = json.loads(done.stdout)
    assert [Path(answer["image"]) for answer in answers] == [pictures / "good" / file for file in files]
    for answer, file in zip(answers, files, strict=True):
        source = "grey.png" if file == "grey.png" else "plain.png"
        pixels = np.array(Image.open(pictures / "good" / source).convert("RGB"))
        with torch.no_grad():
            logits = network(preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None]))[0]
        want = logits.softmax(0)
        best = want.argsort(descending=True)[:2]
        assert answer["label"] == CLASSES[best[0]]
        assert list(answer["scores"]) == [CLASSES[k] for k in best]
        np.testing.assert_allclose(list(answer["scores"].values()), want[best].numpy(), atol=1e-5)


def test_images_are_read_as_in_training(pictures):
    assert set(runner.IMAGE_SUFFIXES) == data.files.SUFFIXES
    files = runner.expand([str(pictures / "good")])
    assert files == data.files.image_files(pictures / "good")
    for file in files:
        np.testing.assert_array_equal(runner.read_image(file), data.read_image(file).permute(1, 2, 0).numpy())


def test_text_output_and_check(exported, pictures, empty_cwd):
    done = run(exported[1], "--check", "--top=9", pictures / "good" / "plain.png")
    first, second = done.stdout.splitlines()
    assert done.returncode == 0
    assert first.startswith("5 samples agree to ")
    assert second.startswith(str(pictures / "good" / "plain.png") + ": ")
    assert second.count("%") == len(CLASSES)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.png", "no such file"),
        ("truncated.png", "image file is truncated"),
        ("text.jpg", "not an image"),
        ("deep.png", "more than 8 bits a channel"),
        ("thin.png", "2000x3 pixels is too elongated"),
    ],
)
def test_one_bad_image_costs_one_line_and_the_rest_goes_on(exported, pictures, name, says, capsys):
    bad, good = pictures / name, pictures / "good" / "plain.png"
    with pytest.raises(ThawkitError, match=f"cannot read {bad}: .*{says}"):
        Bundle(exported[1]).predict(bad)
    assert runner.classify(runner.Bundle(exported[1]), [bad, good], 1, False) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: ")
    assert out.count("\n") == err.count("\n") == 1
    assert says in err


def test_errors_of_the_script(bundle, pictures, empty_cwd):
    missing = run(bundle, empty_cwd / "missing.png")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert (
        missing.stderr.splitlines()[0]
        == f"run.py: error: cannot read {empty_cwd / 'missing.png'}: no such file"
    )
    assert "no image in folder" in run(bundle, empty_cwd).stderr
    assert run(bundle).returncode == 2
    with open(bundle / "model.onnx", "r+b") as file:
        file.seek(3000)
        file.write(b"\0\1\2\3")
    damaged = run(bundle, pictures / "good" / "plain.png")
    assert (damaged.returncode, damaged.stdout) == (2, "")
    assert damaged.stderr.startswith("run.py: error: model.onnx is damaged: its SHA-256")


def test_device_that_is_not_there_is_said(exported):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ThawkitError, match="has no CUDAExecutionProvider"):
        Bundle(exported[1], device="cuda")
    with pytest.raises(ThawkitError, match="device must be one of cpu, cuda"):
        Bundle(exported[1], device="tpu")


def test_use_as_a_module(exported, pictures, tmp_path):
    code = (
        "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); from run import Bundle;"
        "b = Bundle(); p, q = b.predict([sys.argv[2], sys.argv[2]]); s = p.scores.values();"
        "print(b.name, p.label, p == q, round(sum(s), 6), p.probability == max(s))"
    )
    command = [sys.executable, "-I", "-c", code, exported[1], pictures / "good" / "plain.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    label = Bundle(exported[1]).predict(pictures / "good" / "plain.png")[0].label
    assert done.stdout.split() == ["pets", label, "True", "1.0", "True"], done.stderr


def test_predict_takes_paths_pictures_and_arrays(exported, pictures):
    bundle = Bundle(exported[1])
    path = pictures / "good" / "plain.png"
    image = Image.open(path)
    array = np.array(image)
    want = bundle.predict(path)
    assert bundle.predict(str(path)) == bundle.predict(image) == bundle.predict(array) == want
    assert bundle.predict(array[None]) == bundle.predict([path]) == want
    assert len(bundle.predict(np.stack([array, array]))) == 2
    assert bundle.predict(array[..., 0])[0].scores.keys() == set(CLASSES)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_logits_refuses_other_arrays(exported, wrong):
    with pytest.raises(ThawkitError, match=r"images must be uint8 \(N, H, W, 3\)"):
        Bundle(exported[1]).logits(wrong)


def test_script_is_the_package_module_and_runs_on_old_pythons(exported):
    source = Path(runner.__file__).read_bytes()
    assert (exported[1] / "run.py").read_bytes() == source
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}
    assert os.fspath(runner.__file__).endswith("runner.py")
