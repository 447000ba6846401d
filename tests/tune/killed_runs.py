"""Start the same run once for every point in POINTS and kill -9 it there.

Called as ``killed_runs.py DATA.npz FOLDER``. Every run is a forked process, so that torch is imported once.
"""

import io
import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console

from thawkit.data import load
from thawkit.select import create_model
from thawkit.tune import Supervised, TuneConfig, callbacks, checkpoints, fit

# The name `fit` in the package is the function; this is its module.
fit_module = sys.modules["thawkit.tune.fit"]

CONFIG = TuneConfig(epochs=4, batch_size=24, learning_rate=3e-3, train="all", augment="digits", device="cpu")
STEPS_AN_EPOCH = 3


def train(data, output, **options):
    model = create_model("lenet", 3)
    return fit(model, load(data), config=CONFIG, output=output, console=Console(quiet=True), **options)


def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number, owner, name, act, applies=lambda *args: True):
    """Make call ``number`` of ``owner.name``, of those that ``applies``, be ``act`` and then the end."""
    original, calls = getattr(owner, name), 0

    def replacement(*args, **options):
        nonlocal calls
        calls += applies(*args)
        if calls == number and applies(*args):
            act(*args, **options)
            die()
        return original(*args, **options)

    setattr(owner, name, replacement)


def half_of_a_torch_file(content, path):
    buffer = io.BytesIO()
    torch.serialization._legacy_save(content, buffer, torch.serialization.pickle, 2)
    Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])


def half_of_the_weights(tensors, path, **_):
    content = safetensors.torch.save(tensors)
    Path(path).write_bytes(content[: len(content) // 2])


def first_file_of(folder):
    next(path for path in Path(folder).iterdir() if path.is_file()).unlink()


POINTS = {
    "in the first epoch": lambda: on_call(2, Supervised, "loss", die),
    "in the third epoch": lambda: on_call(2 * STEPS_AN_EPOCH + 2, Supervised, "loss", die),
    "half the weights saved": lambda: on_call(
        2, safetensors.torch, "save_file", half_of_the_weights, lambda _, path: "checkpoint" in str(path)
    ),
    "half the optimizer saved": lambda: on_call(
        3, torch, "save", half_of_a_torch_file, lambda _, path: str(path).endswith("optimizer.pt")
    ),
    "all saved but not marked": lambda: on_call(2, callbacks, "mark_complete", die),
    "marked but nothing deleted": lambda: on_call(3, callbacks, "prune", die),
    "in the middle of deleting": lambda: on_call(1, checkpoints.shutil, "rmtree", first_file_of),
    "trained but not scored": lambda: on_call(1, fit_module, "load_weights", die),
    "scored but not written": lambda: on_call(
        1, fit_module, "write_json", die, lambda path, _: path.name == "metrics.json"
    ),
}


def main(data, folder):
    torch.set_num_threads(1)
    for point, arrange in POINTS.items():
        child = os.fork()
        if child == 0:
            arrange()
            train(data, Path(folder) / point)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the run to be killed {point} ended with status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
