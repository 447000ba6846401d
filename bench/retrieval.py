"""Nearest rows and the retrieval metrics: against faiss's flat index, torch.topk on chunked products, PML.

faiss runs with whichever thread count, one or all, is faster. The metrics' peer is pytorch-metric-learning's
AccuracyCalculator, which asks faiss. Needs faiss-cpu; a peer that is not installed is left out. Limits: the
product at the FMA peak, and torch's own product alone.
"""

from __future__ import annotations

import importlib.util

import faiss
import torch
from common import FmaPeak, Report, extra_bytes, parser, timed
from torch.nn import functional as F

from thawkit.losses import functional as L
from thawkit.ops.pairwise import top_k

CHUNK = 512


def torch_chunked(queries, gallery, k, similarity):
    half_norms = gallery.square().sum(1) / 2
    found = []
    for rows in queries.split(CHUNK):
        scores = rows @ gallery.t()
        if similarity == "euclidean":
            scores -= half_norms
        found.append(scores.topk(k, dim=1))
    return torch.cat([f.indices for f in found])


def bare_product(queries, gallery):
    out = torch.empty(CHUNK, gallery.shape[0])
    for rows in queries.split(CHUNK):
        torch.mm(rows, gallery.t(), out=out[: rows.shape[0]])


def with_best_threads(search):
    """Set faiss to one thread or all, whichever is faster for ``search``; return the number."""

    def on(threads):
        def run():
            faiss.omp_set_num_threads(threads)
            search()

        return run

    seconds = timed({str(n): on(n) for n in {1, torch.get_num_threads()}}, 3)
    best = int(min(seconds, key=seconds.__getitem__))
    faiss.omp_set_num_threads(best)
    return best


def nearest(report: Report, count, keys, features, k, similarity, rounds) -> None:
    queries, gallery = torch.randn(count, features), torch.randn(keys, features)
    index = (faiss.IndexFlatIP if similarity == "dot" else faiss.IndexFlatL2)(features)
    index.add(gallery.numpy())
    functions = {
        "thawkit": lambda: top_k(queries, gallery, k, similarity=similarity)[1],
        "faiss": lambda: torch.from_numpy(index.search(queries.numpy(), k)[1]),
        "torch.topk": lambda: torch_chunked(queries, gallery, k, similarity),
        "bare products": lambda: bare_product(queries, gallery),
    }
    measure(
        report,
        f"top_k {similarity}",
        f"{count}x{keys}x{features} k={k}",
        functions,
        rounds,
        2 * count * keys * features,
        faiss_threads=with_best_threads(functions["faiss"]),
        same_as_faiss=(functions["thawkit"]() == functions["faiss"]()).float().mean().item(),
    )


def metrics(report: Report, count, features, classes, rounds) -> None:
    labels = torch.arange(count) % classes
    rows = F.normalize(torch.randn(classes, features)[labels] + 3 * torch.randn(count, features), dim=1)
    functions = {
        "thawkit": lambda: L.retrieval_metrics(rows, labels),
        "bare products": lambda: bare_product(rows, rows),
    }
    notes = {}
    if importlib.util.find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        calculator = AccuracyCalculator(
            include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count"
        )
        functions["pytorch-metric-learning"] = lambda: calculator.get_accuracy(rows, labels)
        theirs = functions["pytorch-metric-learning"]()
        notes = {
            "faiss_threads": with_best_threads(functions["pytorch-metric-learning"]),
            "map_at_r": functions["thawkit"]().map_at_r,
            "their_map_at_r": theirs["mean_average_precision_at_r"],
        }
    size = f"{count}x{features}, {classes} classes"
    measure(report, "retrieval_metrics", size, functions, rounds, 2 * count * count * features, **notes)


def measure(report, what, size, functions, rounds, flops, **notes) -> None:
    peak = FmaPeak()
    seconds = timed(functions | {"fma peak": peak}, rounds)
    del seconds["fma peak"]
    ours = seconds["thawkit"]
    peers = {name: s for name, s in seconds.items() if name not in ("thawkit", "bare products")}
    fastest = min(peers, key=peers.__getitem__, default=None)
    report.row(
        loss=what,
        size=size,
        ms={name: round(1e3 * s, 3) for name, s in seconds.items()},
        fma_peak_gflops=peak.value() / 1e9,
        share_of_fma_peak=flops / peak.value() / ours,
        of_bare_products=ours / seconds["bare products"],
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / ours if fastest else None,
        speedup={name: round(s / ours, 2) for name, s in peers.items()},
        extra_mib={
            name: round(extra_bytes(functions[name]) / 2**20, 2)
            for name in ("thawkit", "torch.topk")
            if name in functions
        },
        **notes,
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    report = Report("retrieval", options)
    report.notes["faiss"] = f"{faiss.__version__} {faiss.get_compile_options().strip()}"
    sizes = [
        (1000, 1000, 64),
        (2000, 20000, 128),
        (10000, 10000, 512),
        (5000, 5000, 1024),
        (10000, 60000, 64),
    ]
    for size in sizes[:1] if options.quick else sizes:
        for k in (10, 100):
            for similarity in ("dot", "euclidean"):
                nearest(report, *size, k, similarity, options.rounds)
    for size in (
        [(1000, 64, 50)] if options.quick else [(2000, 128, 100), (10000, 512, 100), (10000, 128, 10)]
    ):
        metrics(report, *size, options.rounds)
    report.write()


if __name__ == "__main__":
    main()
