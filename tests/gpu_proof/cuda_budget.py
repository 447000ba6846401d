"""Write the budget of the CUDA kernels anew: ``python -m tests.gpu_proof.cuda_budget``.

For each function and architecture: the most registers, the bytes of shared memory, the fewest blocks that a
multiprocessor holds at once, and the width of the widest load, of all instances' the narrowest.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from .cuda_binary import ARCHITECTURES, BUDGET, compile_for, compiler, missing_tool, resources, shipped
from .cuda_host.build import CUDA

Lines = dict[str, dict[str, int]]


def lines(cubin: Path, architecture: int) -> Lines:
    """Return the lines of the budget of a binary's functions."""
    return {
        function: {
            "registers": found.registers,
            "stack": found.stack,
            "shared": found.shared,
            "blocks": found.blocks(architecture),
            "load_bits": found.widest_load,
        }
        for function, found in resources(cubin, architecture).items()
    }


def measured(pool: Executor, folder: Path, scratch: Path) -> dict[int, list[Future[Lines]]]:
    """Start to read every architecture's kernels: the extension's own, or compiled ones where it has none.

    Args:
        pool: what does it.
        folder: that keeps what is compiled.
        scratch: a folder for what the extension holds.
    """

    def compiled(source: Path, architecture: int) -> Lines:
        return lines(compile_for(source, architecture, folder), architecture)

    ready = shipped(scratch)
    return {
        a: [pool.submit(lines, cubin, a) for cubin in ready[a]]
        if a in ready
        else [pool.submit(compiled, source, a) for source in CUDA]
        for a in ARCHITECTURES
    }


def main() -> None:
    """Compile everything and write the file."""
    if missing := missing_tool():
        raise SystemExit(missing)
    functions: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for architecture, jobs in measured(pool, Path(folder), Path(folder)).items():
            for job in jobs:
                for function, line in job.result().items():
                    functions.setdefault(function, {})[f"sm_{architecture}"] = line
    text = json.dumps({"nvcc": compiler(), "functions": functions}, indent=1, sort_keys=True)
    BUDGET.parent.mkdir(exist_ok=True)
    BUDGET.write_text(text + "\n")


if __name__ == "__main__":
    main()
