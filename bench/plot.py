"""Draw bench/results/contrastive-*.json: how much faster than the fastest peer, and the share of the peak."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"


def draw(path: Path) -> None:
    document = json.loads(path.read_text())
    rows = document["rows"][::-1]
    names = [f"{r['loss']}  {r['size']}{' bf16' if r['dtype'] == 'bfloat16' else ''}" for r in rows]
    figure, (faster, share) = plt.subplots(
        1, 2, sharey=True, figsize=(11, 1.2 + 0.24 * len(rows)), layout="constrained"
    )
    faster.barh(names, [r["speedup_over_fastest_peer"] for r in rows], color="#3b6ea5")
    for i, row in enumerate(rows):
        faster.text(
            row["speedup_over_fastest_peer"],
            i,
            f" {row['fastest_peer']}",
            va="center",
            fontsize=7,
            color="#444",
        )
    faster.axvline(1, color="#888", linewidth=1)
    faster.set_xlabel("times faster than the fastest peer (named at the bar)")
    faster.margins(x=0.25)
    share.barh(names, [100 * r["share_of_fma_peak"] for r in rows], color="#7aa86b")
    share.axvline(100, color="#888", linewidth=1)
    share.set_xlabel("share of the FMA peak of its dtype, per cent")
    figure.suptitle(
        f"{document['cpu']}, {document['threads']} threads, torch {document['torch']}", fontsize=9
    )
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {path.with_suffix('.svg')}")


if __name__ == "__main__":
    for result in sorted(RESULTS.glob("contrastive-*.json")):
        draw(result)
