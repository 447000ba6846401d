"""What the trainer's log says about a run: one row an epoch, which one was best, whether it is time to stop.

All of it is computed from the log alone, which every checkpoint carries, so a resumed run cannot disagree
with the run it continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thawkit.tune.config import TuneConfig

Log = Sequence[dict[str, Any]]

_TRAINING_KEYS = ("loss", "learning_rate", "grad_norm")


def epoch_rows(log: Log) -> list[dict[str, Any]]:
    """Return one dict an epoch: ``epoch`` from 1, ``step``, training ``loss``, ``val_...``, ``seconds``."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        if "loss" in entry:
            values = {key: entry[key] for key in _TRAINING_KEYS if key in entry}
        elif "val_loss" in entry:
            values = {key: value for key, value in entry.items() if key not in ("epoch", "step")}
        else:
            continue
        row = rows.setdefault(entry["step"], {"epoch": round(entry["epoch"]), "step": entry["step"]})
        row.update(values)
    return [rows[step] for step in sorted(rows)]


def chosen_row(log: Log, config: TuneConfig) -> dict[str, Any]:
    """Return the row whose weights the run ends with; of equally good epochs the first."""
    rows = epoch_rows(log)
    return rows[-1] if config.keep == "last" else max(rows, key=lambda row: _score(row, config))


def out_of_patience(log: Log, config: TuneConfig) -> bool:
    """Say whether ``config.patience`` epochs have passed since the best one."""
    rows = epoch_rows(log)
    if config.patience is None or not rows:
        return False
    return rows[-1]["epoch"] - chosen_row(log, config)["epoch"] >= config.patience


def _score(row: dict[str, Any], config: TuneConfig) -> float:
    value = row.get(f"val_{config.monitor}", math.nan)
    if math.isnan(value):
        return -math.inf
    return -value if config.monitor == "loss" else value
