"""Write the budget of the CUDA kernels anew: ``python -m tests.gpu_proof.cuda_budget``.

For each function and architecture: the most registers, the bytes of shared memory, the fewest blocks that a
multiprocessor holds at once, and the width of the widest load, of all instances' the narrowest.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cuda_binary import ARCHITECTURES, BUDGET, compile_for, compiler, missing_tool, resources
from .cuda_host.build import CUDA


def measured(source: Path, architecture: int, folder: Path) -> dict[str, dict[str, int]]:
    """Compile a source and return its functions' lines of the budget."""
    return {
        function: {
            "registers": found.registers,
            "stack": found.stack,
            "shared": found.shared,
            "blocks": found.blocks(architecture),
            "load_bits": found.widest_load,
        }
        for function, found in resources(compile_for(source, architecture, folder), architecture).items()
    }


def main() -> None:
    """Compile everything and write the file."""
    if missing := missing_tool():
        raise SystemExit(missing)
    functions: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        jobs = {(a, s): pool.submit(measured, s, a, Path(folder)) for a in ARCHITECTURES for s in CUDA}
        for (architecture, _), job in jobs.items():
            for function, line in job.result().items():
                functions.setdefault(function, {})[f"sm_{architecture}"] = line
    text = json.dumps({"nvcc": compiler(), "functions": functions}, indent=1, sort_keys=True)
    BUDGET.parent.mkdir(exist_ok=True)
    BUDGET.write_text(text + "\n")


if __name__ == "__main__":
    main()
