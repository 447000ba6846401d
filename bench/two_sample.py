"""The permutation test of MMD: against alibi-detect, the textbook loop, torch in panels and the FMA peak.

All compute 1000 permutations of one RBF kernel. The textbook loop stores K and reorders it for every
permutation, as alibi-detect's MMDDrift does; where that takes more than 20 s, both are timed with 1 and with
5 permutations, and ``ms`` holds the line through these at 1000. "torch in panels" is thawkit's definition in
plain PyTorch: some rows of K at a time, times the 0/1 matrix of all permutations, which it draws with numpy
within the time shown. Limit: the products of the triangle at the FMA peak.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings

import torch
from common import FmaPeak, Report, extra_bytes, parser, timed

from thawkit import ops
from thawkit.losses import functional as L

PERMUTATIONS = 1000
FEW, MORE = 1, 5  # permutations
LONG = 20.0  # seconds


def gram(x, y, bandwidth):
    z = torch.cat((x, y))
    norms = z.square().sum(1)
    return torch.addmm(norms + norms[:, None], z, z.t(), alpha=-2).mul_(-0.5 / bandwidth**2).exp_()


def textbook(x, y, bandwidth, permutations):
    kernel, n = gram(x, y, bandwidth).fill_diagonal_(0), x.shape[0]

    def statistic(k):
        m = k.shape[0] - n
        within = k[:n, :n].sum() / (n * (n - 1)) + k[n:, n:].sum() / (m * (m - 1))
        return within - 2 * k[:n, n:].mean()

    observed = statistic(kernel)
    null = []
    for _ in range(permutations):
        order = torch.randperm(kernel.shape[0])
        null.append(statistic(kernel[order][:, order]))
    return (1 + (torch.stack(null) >= observed).sum()) / (1 + permutations)


def alibi(x, y, bandwidth, permutations):
    import numpy as np
    from alibi_detect.cd import MMDDrift

    detector = MMDDrift(
        x.numpy(), backend="pytorch", sigma=np.array([bandwidth], "float32"), n_permutations=permutations
    )
    return detector.predict(y.numpy())["data"]["p_val"]


def at_1000(test, *arguments):
    """Seconds at 1000 permutations and what they come from: one measurement, or two and their line."""
    seconds = {}
    for count in (FEW, MORE):
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            test(*arguments, count)
            best = min(best, time.perf_counter() - start)
        seconds[count] = best
    each = (seconds[MORE] - seconds[FEW]) / (MORE - FEW)
    if PERMUTATIONS * each > LONG:
        return seconds[FEW] + (PERMUTATIONS - FEW) * each, seconds
    start = time.perf_counter()
    test(*arguments, PERMUTATIONS)
    seconds = {PERMUTATIONS: time.perf_counter() - start}
    return seconds[PERMUTATIONS], seconds


def test(report: Report, rows: int, features: int, rounds: int) -> None:
    x, y = torch.randn(rows, features), torch.randn(rows, features)
    bandwidth = L.mmd_test(x, y, 1).bandwidth
    options = {"bandwidths": bandwidth, "seed": 0}

    def in_panels():
        with ops.use_backend("reference"):
            return L.mmd_test(x, y, PERMUTATIONS, **options)

    peak = FmaPeak()
    functions = {
        "thawkit": lambda: L.mmd_test(x, y, PERMUTATIONS, **options),
        "torch in panels": in_panels,
        "fma peak": peak,
    }
    ours, theirs = functions["thawkit"](), in_panels()
    memory = {name: extra_bytes(functions[name]) for name in ("thawkit", "torch in panels")}
    memory["textbook loop"] = extra_bytes(lambda: textbook(x, y, bandwidth.item(), 1))
    seconds = timed(functions, rounds)
    del seconds["fma peak"]
    seconds["textbook loop"], loop = at_1000(textbook, x, y, bandwidth.item())
    notes = {"textbook_seconds": loop}
    if importlib.util.find_spec("alibi_detect"):
        logging.disable(logging.WARNING)
        seconds["alibi-detect"], notes["alibi_seconds"] = at_1000(alibi, x, y, bandwidth.item())
    mine = seconds["thawkit"]
    peers = {name: s for name, s in seconds.items() if name != "thawkit"}
    fastest = min(peers, key=peers.__getitem__)
    # K's triangle and its product with the permutations: N (N + 1) / 2 multiply-adds for each column
    flops = 2 * rows * (2 * rows + 1) * (features + PERMUTATIONS + 1)
    report.row(
        loss="mmd_test",
        size=f"{rows}+{rows}x{features}, {PERMUTATIONS} permutations",
        ms={name: round(1e3 * s, 3) for name, s in seconds.items()},
        fma_peak_gflops=peak.value() / 1e9,
        share_of_fma_peak=flops / peak.value() / mine,
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / mine,
        speedup={name: round(s / mine, 2) for name, s in peers.items()},
        extra_mib={name: round(b / 2**20, 2) for name, b in memory.items()},
        same_p_value=ours.p_value == theirs.p_value,
        **notes,
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    report = Report("two_sample", options)
    for rows in (200,) if options.quick else (100, 1000, 5000):
        test(report, rows, 64, options.rounds * (1 if rows > 1000 else 5))
    report.write()


if __name__ == "__main__":
    main()
