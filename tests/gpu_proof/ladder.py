"""How far up the ladder of proof each GPU kernel got, told by the tests that took it there.

0. a float64 oracle and invariants;
1. the kernel's own source run without a GPU: values, bounds, races and program order;
2. a mutation gate: planted bugs are caught;
3. compiled for every architecture, without a driver;
4. registers, spills, shared memory and occupancy held to a budget file;
5. bytes and arithmetic counted: a predicted floor;
6. run on a GPU.
"""

from __future__ import annotations

import json
import os

RUNGS = range(7)


def record(kernel: str, rung: int) -> None:
    """Append that `kernel` stands at `rung` to the file that THAWKIT_LADDER names; nothing where it is unset.

    A test calls this last, when all that its rung asks has been asserted.
    """
    if rung not in RUNGS:
        raise ValueError(f"rung: expected 0 to 6, got {rung}")
    if path := os.environ.get("THAWKIT_LADDER"):
        with open(path, "a") as file:
            file.write(json.dumps({"kernel": kernel, "rung": rung}) + "\n")
