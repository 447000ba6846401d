"""What the benchmarks share: interleaved timing, the machine's own limits, results as files.

A figure counts only beside its peers and the physical limit, measured in one run. Functions are timed in
turn, round after round, so that a drift of the machine touches all of them; the table shows medians.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the memory profiler talks on standard error

import torch

RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="fewer sizes and rounds; writes no result file")
    options.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    options.add_argument("--output", type=Path, help="result file (default: bench/results/<name>-<cpu>.json)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is measured gets written
    return options


def cpu_name() -> str:
    """Return the processor's name with family and model, since virtual machines often say only the brand."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def timed(
    functions: Mapping[str, Callable[[], Any]], rounds: int, limit_s: float = 60.0, calls: int = 1
) -> dict[str, float]:
    """Return the median seconds of each function, called in turn after one warm-up round.

    Rounds stop early once ``limit_s`` seconds are spent and three rounds are done. With ``calls`` above 1 a
    function is called so many times in its turn, and the mean of all but the first counts: for work so short
    that finding its code in cache again would be most of it.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    collect = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - started > limit_s:
                break
            for name, function in functions.items():
                if calls > 1:
                    function()
                start = time.perf_counter()
                for _ in range(max(calls - 1, 1)):
                    function()
                seconds[name].append((time.perf_counter() - start) / max(calls - 1, 1))
    finally:
        if collect:
            gc.enable()
    return {name: statistics.median(values) for name, values in seconds.items()}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.compile's form for the sizes that come, which knows of no sizes before them."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


class FmaPeak:
    """FLOP/s of register-only fused multiply-adds on all of torch's threads, as one of the functions timed.

    Of what the CPU's products of ``dtype`` multiply: bfloat16 only where the kernels multiply it.

    Called in turn with the others, so that the limit is taken from the same minutes as the figures.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        from thawkit.ops._library import DTYPES
        from thawkit.ops.pairwise.cpu import kernel_dtypes

        self.operand = DTYPES[kernel_dtypes(dtype)[1]]
        self.rates: list[float] = []

    def __call__(self) -> None:
        from thawkit import _C

        self.rates.append(_C.fma_peak(torch.get_num_threads(), 0.02, self.operand))

    def value(self) -> float:
        """Return the median rate, in FLOP/s."""
        return statistics.median(self.rates)


def copy_bandwidth(nbytes: int = 256 << 20) -> float:
    """Return bytes/s of a copy, reads and writes both counted."""
    source, target = torch.empty(nbytes // 4), torch.empty(nbytes // 4)
    source.fill_(1)
    best = min(timed({"copy": lambda: target.copy_(source)}, 5).values())
    return 2 * nbytes / best


def extra_bytes(function: Callable[[], Any]) -> int:
    """Return the most bytes that torch's CPU allocator held at once for ``function``, over the start."""
    return max(_held(function), default=0)


def kept_bytes(function: Callable[[], Any]) -> int:
    """Return the bytes that the result of ``function``, and what hangs on it, hold in torch's allocator."""
    return [0, *_held(function)][-1]


def _held(function: Callable[[], Any]) -> list[int]:
    """Bytes held after each allocation and release while ``function`` runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        keep = function()
    events = recorded.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    del keep
    return list(itertools.accumulate(changes))


def _command() -> str:
    """Return what repeats the run: where its file went is no part of that."""
    arguments = sys.argv[1:]
    if "--output" in arguments:
        place = arguments.index("--output")
        del arguments[place : place + 2]
    return " ".join(["python bench/" + Path(sys.argv[0]).name, *arguments])


@dataclass
class Report:
    """Rows of one benchmark, printed as they come and written with what is needed to repeat them."""

    name: str
    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def row(self, **values: Any) -> None:
        """Add a row and print it."""
        self.rows.append(values)
        print("  ".join(f"{key}={_short(value)}" for key, value in values.items()), flush=True)

    def write(self) -> None:
        """Write the result file, unless the run was a quick one."""
        from thawkit import _C, __version__

        document = {
            "benchmark": self.name,
            "command": _command(),
            "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu_name(),
            "isa": _C.cpu_isa(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "thawkit": __version__,
            "python": platform.python_version(),
            **self.notes,
            "rows": self.rows,
        }
        if self.options.quick and not self.options.output:
            return
        slug = "".join(c if c.isalnum() else "-" for c in cpu_name().lower()).strip("-")
        path = self.options.output or RESULTS / f"{self.name}-{'-'.join(filter(None, slug.split('-')))}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {path}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
