"""Write the README's tables, from bench/results and the proofs, between the markers that name them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def results(name: str) -> list[dict[str, Any]]:
    paths = sorted((ROOT / "bench" / "results").glob(f"{name}-*.json"))
    return [json.loads(path.read_text()) | {"path": path} for path in paths]


def source(document: dict[str, Any]) -> str:
    peaks = [row["fma_peak_gflops"] for row in document["rows"] if "fma_peak_gflops" in row]
    limit = (
        f"FMA peak {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s, measured with each row"
        if peaks
        else f"copy {document['copy_bandwidth_gb_s']:.1f} GB/s"
    )
    return (
        f"`{document['command']}` on {document['cpu']}, {document['threads']} threads, "
        f"{document['isa']} kernels, torch {document['torch']}; {limit}."
    )


def losses(name: str, limit: str, limit_title: str, memory_peer: str) -> str:
    parts = []
    for document in results(name):
        lines = [
            "| loss | size | thawkit | fastest peer | faster by | all peers | "
            f"{limit_title} | extra memory, ours / eager |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in document["rows"]:
            ms = row["ms"]
            peers = ", ".join(f"{peer} {factor:.3g}×" for peer, factor in row["speedup"].items())
            extra = row["extra_mib"]
            memory = f"{extra['thawkit']} / {extra[memory_peer if memory_peer in extra else 'eager']} MiB"
            lines.append(
                f"| {row['loss']} | {row['size']} | {ms['thawkit']:.3g} ms | {row['fastest_peer']}, "
                f"{ms[row['fastest_peer']]:.3g} ms | {row['speedup_over_fastest_peer']:.2f}× | {peers} | "
                f"{100 * row[limit]:.0f} % | {memory} |"
            )
        parts.append("\n".join([*lines, "", source(document)]))
    return "\n\n".join(parts)


def pairwise(name: str) -> str:
    parts = []
    for document in results(name):
        lines = [
            "| loss | size | thawkit | fastest peer | faster by | other peers | share of the FMA peak | "
            "ours / torch's bare products | extra memory: ours / fastest peer / least of the peers |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in document["rows"]:
            ms, memory, fastest = row["ms"], row["extra_mib"], row["fastest_peer"]
            others = ", ".join(f"{peer} {x:.3g}×" for peer, x in row["speedup"].items() if peer != fastest)
            bare = row.get("of_bare_products")
            known = [peer for peer in row["speedup"] if peer in memory]
            least = min(known, key=memory.__getitem__, default=fastest)
            lines.append(
                f"| {row['loss']} | {row['size']}{' bf16' if row.get('dtype') == 'bfloat16' else ''} | "
                f"{ms['thawkit']:.3g} ms | {fastest}, {ms[fastest]:.3g} ms | "
                f"{row['speedup_over_fastest_peer']:.2f}× | {others or '–'} | "
                f"{100 * row['share_of_fma_peak']:.0f} % | {f'{bare:.2f}' if bare else '–'} | "
                f"{mib(memory, 'thawkit')} / {mib(memory, fastest)} / {mib(memory, least)} MiB |"
            )
        parts.append("\n".join([*lines, "", source(document)]))
    return "\n\n".join(parts)


def mib(memory: dict[str, float], name: str) -> str:
    """Return extra memory; that of a library with an allocator of its own is unknown."""
    return f"{memory[name]:.4g}" if name in memory else "?"


STEPS = (
    "stock",
    "channels_last",
    "frozen_bn",
    "checkpoint",
    "memsave",
    "compile",
    "thawkit",
    "thawkit_compiled",
)
FORWARDS = "stock", "channels_last", "freezing", "thawkit", "inexact"


def frozen() -> str:
    parts = []
    for document in results("frozen"):
        rows = document["rows"]
        steps = [row for row in rows if "model" in row]
        lines = [
            "| model | trains | saved a step, stock → thawkit | peak, stock → thawkit | step: stock | "
            "channels-last | FrozenBatchNorm2d | checkpoints | memsave_torch | torch.compile | thawkit | "
            "thawkit compiled | "
            "forward: stock | channels-last | inductor, frozen | thawkit | thawkit, `exact=False` |",
            "|---" * 17 + "|",
        ]
        lines = lines if steps else [f"On {document['cpu']}:"]
        for row in steps:
            saved, peak = row["saved_mib"], row["peak_mib"]
            times = [milliseconds(row["ms"], name) for name in STEPS]
            times += [milliseconds(row.get("forward_ms", {}), name) for name in FORWARDS]
            lines.append(
                f"| {row['model']} | {row['policy']} | {saved['stock']:.1f} → {saved['thawkit']:.1f} MiB | "
                f"{peak['stock']:.0f} → {peak['thawkit']:.0f} MiB | {' | '.join(times)} |"
            )
        remarks = []
        if any(row["policy"].startswith("lora") for row in steps):
            remarks.append("In rows with `lora` the stock model has 🤗 peft's adapters.")
        memsave = [
            f"{row['saved_mib']['memsave']:.1f} MiB in {row['model']}, {row['policy']}"
            for row in steps
            if "memsave" in row["saved_mib"]
        ]
        if memsave:
            remarks.append(f"memsave_torch saves {' and '.join(memsave)}.")
        lines += ["", " ".join(remarks)] if remarks else []
        for row in rows:
            if "process" in row:
                peak, batch = row["peak_rss_mib"], row["largest_batch_in_8_gb_by_extrapolation"]
                lines += [
                    "",
                    f"A process that trains {row['process']}, {row['policy']}, needs {peak['stock']:.0f} MiB "
                    f"for its steps with the stock model, {peak['thawkit']:.0f} MiB with thawkit's and "
                    f"{peak['thawkit, copies=False']:.0f} MiB without copies of frozen weights; by two batch "
                    f"sizes, 8 GB would do for batches of {', '.join(map(str, batch.values()))}.",
                ]
        points = [row for row in rows if "trade_off" in row]
        if points:
            lines += ["", *trade_off(points, document["path"])]
        parts.append("\n".join([*lines, "", source(document)]))
    return "\n\n".join(parts)


def trade_off(points: list[dict[str, Any]], path: Path) -> list[str]:
    """What recomputing pays for what it does not save, beside freezing."""
    model, policy = points[0]["trade_off"], points[0]["policy"]
    lines = [
        f"![saved bytes and backward FLOPs]({path.with_suffix('.svg').relative_to(ROOT)})",
        "",
        f"| {model}, {policy} | saved a step | backward GFLOP | step |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['variant']} | {row['saved_mib']:.1f} MiB | {row['backward_gflop']:.1f} | "
        f"{milliseconds(row, 'ms')} |"
        for row in points
    ]
    return lines


def milliseconds(times: dict[str, float], name: str) -> str:
    return f"{times[name]:.0f} ms" if name in times else "–"


RUNGS = "source run", "bugs caught", "compiled", "budget", "counted", "on a GPU"


def ladder() -> str:
    columns = [f"{number} {name}" for number, name in enumerate(RUNGS, start=1)]
    lines = [
        f"| kernel | {' | '.join(columns)} | bytes | flops | transcendental | predicted floor |",
        "|---" * (len(columns) + 5) + "|",
    ]
    kernels = json.loads((ROOT / "tests" / "gpu_proof" / "ladder.json").read_text())
    for name, kernel in kernels.items():
        language, _, short = name.partition("/")
        marks = ["✓" if rung in kernel["rungs"] else "–" for rung in range(1, len(RUNGS) + 1)]
        facts = [
            f"{kernel[key]:.4g}" if key in kernel else "–" for key in ("bytes", "flops", "transcendentals")
        ]
        floor = f"{kernel['floor_ms']:.3g} ms" if "floor_ms" in kernel else "–"
        title = f"`{short}`, {'CUDA C++' if language == 'cuda' else language.capitalize()}"
        lines.append(f"| {' | '.join([title, *marks, *facts, floor])} |")
    return "\n".join(lines)


TABLES = {
    "ladder": ladder,
    "contrastive": lambda: pairwise("contrastive"),
    "margin": lambda: pairwise("margin"),
    "retrieval": lambda: pairwise("retrieval"),
    "mmd": lambda: losses("mmd", "share_of_fma_peak", "share of the FMA peak", "eager"),
    "two_sample": lambda: pairwise("two_sample"),
    "focal": lambda: losses("focal", "share_of_copy_bandwidth", "share of the copy bandwidth", "torchvision"),
    "frozen": frozen,
}


def main() -> int:
    text = README.read_text()
    for name, table in TABLES.items():
        start = f"<!-- {name}: generated by bench/readme.py -->\n"
        before, marker, rest = text.partition(start)
        _, end, after = rest.partition("<!-- end -->")
        if not (marker and end):
            print(f"README.md has no markers for {name}", file=sys.stderr)
            return 1
        text = f"{before}{marker}{table()}\n{end}{after}"
    if "--check" in sys.argv:
        return int(text != README.read_text())
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
