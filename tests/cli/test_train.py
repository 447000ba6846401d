import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from thawkit.cli import main
from thawkit.tune import load_run

pytestmark = pytest.mark.usefixtures("one_thread")

LIGHT = ["--model", "lenet", "--train", "all", "--augment", "digits", "--batch-size", "24", "--epochs", "3"]


def write_folder(root):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 120, (14, 14), dtype=np.uint8)
            pixels[:, 7 * label : 7 * label + 7] += 90
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "sides")


def command(folder, output, *more):
    return ["train", "--data", str(folder), "--output", str(output), *LIGHT, *more]


def test_train_prints_epochs_metrics_and_what_next(folder, tmp_path, capsys):
    assert (
        main(command(folder, tmp_path / "run", "--loss", "focal", "--balanced", "--patience", "2", "--probe"))
        == 0
    )
    out = capsys.readouterr().out
    assert "sides: 56 training, 12 validation and 12 test images, 2 classes" in out
    assert "train='all' trains" in out
    assert "linear probe, test (12)" in out
    assert re.search(r"epoch 1/3 +loss \d", out)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{metrics['test']['accuracy']:.4f}" in out
    assert f"thawkit export {tmp_path}/run --output {tmp_path}/run/bundle" in out
    assert load_run(tmp_path / "run").load_data().classes == ("left", "right")
    method = json.loads((tmp_path / "run" / "run.json").read_text())["method"]
    assert (method["criterion"], method["class_weights"]) == ("focal", "balanced")


def test_cached_features_are_taken_again(folder, tmp_path, capsys):
    arguments = ["--train", "head", "--cache", str(tmp_path / "features"), "--cache-views", "2"]
    assert main(command(folder, tmp_path / "run", *arguments)) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.features")}
    assert f"feature cache: {tmp_path / 'features'}" in capsys.readouterr().out
    assert main(command(folder, tmp_path / "again", *arguments)) == 0
    assert set((tmp_path / "features").glob("*.features")) == set(made)
    assert len(made) == 2
    size = sum(path.stat().st_size for path in made)
    gc.collect()  # files that a run still holds open make no room
    half = ["--cache-half", "--cache-limit", str(size / 2**30)]
    assert main(command(folder, tmp_path / "half", *arguments, *half)) == 0
    left = set((tmp_path / "features").glob("*.features"))
    assert len(left - set(made)) == 2
    assert sum(path.stat().st_size for path in left) <= size


@pytest.mark.parametrize("option", [["--cache-half"], ["--cache-views", "2"], ["--cache-limit", "1"]])
def test_an_option_of_the_cache_without_the_cache_is_refused(folder, tmp_path, capsys, option):
    assert main(command(folder, tmp_path / "run", *option)) == 2
    assert f"{option[0]}: expected --cache DIR beside it, got none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_names_that_rich_would_read_as_markup(folder, tmp_path, capsys):
    data = shutil.copytree(folder, tmp_path / "[bold]:dog:")
    run = tmp_path / "[x]"
    arguments = ["--model", "lenet", "--train", "*[bs]", "--epochs", "1"]
    assert main(["train", "--data", str(data), "--output", str(run), *arguments]) == 0
    out = capsys.readouterr().out
    assert "[bold]:dog:: 56 training" in out
    assert "train='*[bs]' trains" in out
    assert f"Next:  thawkit export {run} --output {run}/bundle" in out


def test_killed_from_outside_and_resumed(folder, tmp_path):
    assert main(command(folder, tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "thawkit.cli", *command(folder, killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/*/complete.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "metrics.json").exists()
    assert main(command(folder, killed, "--resume")) == 0
    assert (killed / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()


def spoil_image(folder):
    victim = folder / "left" / "7.png"
    victim.write_bytes(victim.read_bytes()[:60])


@pytest.mark.parametrize(
    ("arrange", "more", "message"),
    [
        (spoil_image, [], r"cannot read image .*left/7\.png"),
        (None, ["--data", "nowhere"], r"data 'nowhere': no such folder"),
        (None, ["--model", "resnet"], r"unknown model 'resnet'"),
        (None, ["--epochs", "0"], r"epochs must be above 0"),
        (None, ["--batch-size", "0"], r"batch_size must be above 0, got 0"),
        (None, ["--learning-rate", "nan"], r"learning_rate must be .*, got nan"),
        (None, ["--workers", "-1"], r"workers must be 0 or more, got -1"),
        (
            None,
            ["--model", "torchvision:resnet18", "--image-size", "0"],
            r"image_size must be from 1 to 2048",
        ),
        (None, ["--weights", "none.pth"], r"weights: no such file: none.pth"),
        (None, ["--train", "nothing_like_this"], r"nothing_like_this"),
        (None, ["--resume", "--overwrite"], r"use one of them"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arrange, more, message):
    folder = write_folder(tmp_path / "images")
    if arrange:
        arrange(folder)
    assert main(command(folder, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"thawkit train: error: .*{message}.*\n", error)


def test_weights_with_other_labels_are_named(folder, tmp_path, capsys):
    other = tmp_path / "labels.npz"
    np.savez(other, train_images=np.zeros((9, 8, 8), np.uint8), train_labels=np.arange(8) % 3)
    assert main(["train", "--data", str(other), "--output", str(tmp_path / "run"), *LIGHT]) == 2
    assert "9 images but 8 labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "epochs must be above 0"),
        (["--workers", "100000"], r"workers must be at most \d+ on this machine, got 100000"),
        (["--loss", "focal", "--label-smoothing", "0.1"], "label_smoothing goes with cross_entropy"),
        (["--precision", "fp16", "--device", "cpu"], "precision 'fp16' needs CUDA"),
        (["--probe"], "is not empty and holds no thawkit run|is not empty: continue the run"),
    ],
)
def test_settings_and_folder_are_checked_before_the_data(tmp_path, capsys, more, message):
    (tmp_path / "notes.txt").write_text("mine")
    output = tmp_path if "--probe" in more else tmp_path / "run"
    assert main(command("nowhere", output, *more)) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("train", "--loss", "cross_entropy, focal"),
        ("train", "--augment", "none, standard, digits"),
        ("train", "--monitor", "accuracy, balanced_accuracy, macro_f1, auroc, loss"),
        ("train", "--scheduler", "cosine, linear, constant"),
        ("train", "--precision", "fp32, bf16, fp16"),
        ("train", "--device", "auto, cpu, cuda"),
        ("adapt", "--method", "dan, source-only"),
        ("adapt", "--keep", "best, last"),
    ],
)
def test_an_unknown_name_lists_the_known_ones_in_one_line(capsys, command, option, names):
    with pytest.raises(SystemExit) as stop:
        main([command, option, "foo"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.replace("'", "")
    start = f"thawkit {command}: error: argument {option}: invalid choice: foo (choose from {names})"
    assert re.fullmatch(re.escape(start) + r".*\n", error)


@pytest.mark.parametrize("name", ["train", "adapt"])
def test_help_needs_no_torch(name):
    code = (
        "import sys; from thawkit.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
