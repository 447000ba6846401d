"""Where the demo ran, and what was typed."""

from __future__ import annotations

import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import thawkit
from thawkit.deploy import runtime


def command(output: str | Path, quick: bool, seed: int) -> str:
    """Return the command line that does the same again."""
    words = ["thawkit", "demo", *(["--quick"] if quick else []), "--output", str(output), "--seed", str(seed)]
    return shlex.join(words)


def describe() -> dict[str, Any]:
    """Return the CPU's name, the number of threads, and the versions of what the figures depend on."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "thawkit": thawkit.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            **runtime.status().installed,
        },
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
