"""Time and memory on the device that a benchmark runs on, and functions that may fail there."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from common import cpu_name, extra_bytes

Function = Callable[[], Any]


class Cpu:
    """For trying a script where there is no GPU."""

    name = property(lambda self: cpu_name())
    device = torch.device("cpu")

    def seconds(self, function: Function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def peak_bytes(self, function: Function) -> int:
        return extra_bytes(function)

    def free_bytes(self) -> int:
        return 1 << 30

    def facts(self) -> dict[str, Any]:
        return {}


class Cuda:
    """Times are those between two events of the current stream."""

    device = torch.device("cuda")

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    def seconds(self, function: Function) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_bytes(self, function: Function) -> int:
        """Return the most bytes that torch's allocator held at once for ``function``, over the start."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def facts(self) -> dict[str, Any]:
        peers = ("triton", "liger-kernel", "cut-cross-entropy", "inf-cl", "siglip-kernel")
        return {
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "cuda": torch.version.cuda,
            "packages": {d.name: d.version for d in metadata.distributions() if d.name in peers},
        }


@dataclass
class Measured:
    """Medians and peaks by name, and why some have none."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rounds: int = 0


def measure(machine: Cpu | Cuda, functions: Mapping[str, Function], rounds: int, limit_s: float) -> Measured:
    """Time each function in turn, round after round, until the rounds or the seconds are over.

    Each is called twice before: once so that it compiles what it compiles, once for its memory. One that
    raises is left out from then on, with its reason. At least one round is counted, whatever it takes.
    """
    out, times = Measured(), {}
    for name, function in functions.items():
        try:
            function()
            out.peak_bytes[name] = machine.peak_bytes(function)
        except Exception as error:  # a peer that is not for this torch, or memory that is not there
            out.failed[name] = reason(error)
            continue
        finally:
            gc.collect()
        times[name] = []
    end = time.perf_counter() + limit_s
    while times and out.rounds < rounds and (not out.rounds or time.perf_counter() < end):
        out.rounds += 1
        for name in list(times):
            try:
                times[name].append(machine.seconds(functions[name]))
            except Exception as error:
                out.failed[name] = reason(error)
                del times[name]
    out.seconds = {name: statistics.median(values) for name, values in times.items()}
    return out


def reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120] if text else ''}"
