"""Draw bench/results as pictures.

contrastive-*.json: how much faster than the fastest peer, and the share of the peak.
frozen-*.json: saved bytes and backward FLOPs of a step, where others trade one for the other.
"""

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


def draw_trade_off(path: Path) -> None:
    document = json.loads(path.read_text())
    points = [row for row in document["rows"] if "trade_off" in row]
    if not points:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    compiled = sorted(
        (p for p in points if p["variant"].startswith("compile")), key=lambda p: p["backward_gflop"]
    )
    axes.plot(
        [p["saved_mib"] for p in compiled], [p["backward_gflop"] for p in compiled], color="#3b6ea5", zorder=1
    )
    for point in points:
        ours = point["variant"] == "thawkit"
        axes.scatter(
            point["saved_mib"],
            point["backward_gflop"],
            s=60,
            color="#c0504d" if ours else "#3b6ea5",
            zorder=2,
        )
        axes.annotate(
            point["variant"] + (f", {point['ms']:.0f} ms" if "ms" in point else ""),
            (point["saved_mib"], point["backward_gflop"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(0.15)
    axes.set_xlabel("saved for the backward pass, MiB")
    axes.set_ylabel("backward GFLOP")
    row = points[0]
    axes.set_title(
        f"{row['trade_off']}, {row['policy']}: {document['cpu']}, torch {document['torch']}", fontsize=9
    )
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {path.with_suffix('.svg')}")


if __name__ == "__main__":
    for result in sorted(RESULTS.glob("contrastive-*.json")):
        draw(result)
    for result in sorted(RESULTS.glob("frozen-*.json")):
        draw_trade_off(result)
