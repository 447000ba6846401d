"""How far up the ladder of proof each GPU kernel got, told by the tests that took it there.

0. a float64 oracle and invariants;
1. the kernel's own source run without a GPU: values, bounds, races and program order;
2. a mutation gate: planted bugs are caught;
3. compiled for every architecture, without a driver;
4. registers, spills, shared memory and occupancy held to a budget file;
5. bytes and arithmetic counted: a predicted floor;
6. run on a GPU.

`THAWKIT_LADDER=rungs.jsonl pytest tests/gpu_proof`, then `python -m tests.gpu_proof.ladder rungs.jsonl`,
brings ladder.json up to date for the kernels that ran, and `python bench/readme.py` makes the README's table
of it. Rungs that did not run stay as they are: where a kernel falls from one, a test fails.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RUNGS = range(7)
LADDER = Path(__file__).parent / "ladder.json"


def record(kernel: str, rung: int, **facts: float) -> None:
    """Append that `kernel` stands at `rung` to the file that THAWKIT_LADDER names.

    Where it is unset, that must be what ladder.json says, but for rung 6, which few can record.
    A test calls this last, when all that its rung asks has been asserted. Facts are what the rung counted.
    """
    if rung not in RUNGS:
        raise ValueError(f"rung: expected 0 to 6, got {rung}")
    if path := os.environ.get("THAWKIT_LADDER"):
        with open(path, "a") as file:
            file.write(json.dumps({"kernel": kernel, "rung": rung, **facts}) + "\n")
    elif rung < 6:
        told = json.loads(LADDER.read_text()).get(kernel, {"rungs": []})
        found = rung in told["rungs"], {name: told.get(name) for name in facts}
        assert found == (True, facts), f"{LADDER.name} does not say so of {kernel}; see {__name__}"


def gathered(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the rungs of each kernel, and the facts that were recorded with them."""
    kernels: dict[str, dict[str, Any]] = {}
    for line in lines:
        entry = json.loads(line)
        kernel = kernels.setdefault(entry.pop("kernel"), {"rungs": []})
        kernel["rungs"] = sorted({*kernel["rungs"], entry.pop("rung")})
        kernel.update(entry)
    return dict(sorted(kernels.items()))


def merged(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what stood there, with the rungs and facts of the kernels that ran now."""
    kernels = dict(before)
    for name, entry in now.items():
        known = before.get(name, {"rungs": []})
        kernels[name] = known | entry | {"rungs": sorted({*known["rungs"], *entry["rungs"]})}
    return dict(sorted(kernels.items()))


if __name__ == "__main__":
    lines = [line for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]
    kernels = merged(json.loads(LADDER.read_text()), gathered(lines))
    LADDER.write_text(json.dumps(kernels, indent=1) + "\n")
