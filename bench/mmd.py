"""MMD, forward and backward: against torch's best forms, its bare products and the FMA peak.

Peers: eager torch (the form with ``cdist``) and torch.compile of it. Limits: the products alone at the FMA
peak, and torch's own products alone.
"""

from __future__ import annotations

import torch
from common import FmaPeak, Report, extra_bytes, parser, timed

from thawkit.losses import functional as L


def mmd(report: Report, rows: int, features: int, rounds: int, compiled: bool) -> None:
    x = torch.randn(rows, features, requires_grad=True)
    y = (torch.randn(rows, features) + 0.1).requires_grad_()
    both = torch.cat((x, y)).detach()
    scores, out = torch.empty(2 * rows, 2 * rows), torch.empty(2 * rows, features)

    def cdist_form(x, y):
        z = torch.cat((x, y))
        d2 = torch.cdist(z, z) ** 2
        mean = d2.detach().sum() / (d2.shape[0] * (d2.shape[0] - 1))
        kernel = sum(torch.exp(-d2 / (2 * mean * 2.0**e)) for e in range(-2, 3))
        return kernel[:rows, :rows].mean() + kernel[rows:, rows:].mean() - 2 * kernel[:rows, rows:].mean()

    def bare_products():
        torch.mm(both, both.t(), out=scores)
        torch.mm(scores, both, out=out)

    functions = {
        "thawkit": lambda: torch.autograd.grad(L.mmd(x, y), (x, y)),
        "eager": lambda: torch.autograd.grad(cdist_form(x, y), (x, y)),
        "bare products": bare_products,
    }
    if compiled:
        step = torch.compile(cdist_form)
        functions["torch.compile"] = lambda: torch.autograd.grad(step(x, y), (x, y))
    error = max(
        ((a - b).norm() / b.norm()).item()
        for a, b in zip(functions["thawkit"](), functions["eager"](), strict=True)
    )
    memory = {name: extra_bytes(functions[name]) for name in ("thawkit", "eager")}
    # S by its upper triangle, and W times the samples: 3 N^2 D multiply-adds' FLOP of N = 2 rows
    flops = 3 * (2 * rows) ** 2 * features
    measure(report, "mmd", f"{rows}+{rows}x{features}", functions, rounds, flops, memory, error)


def measure(report, loss, size, functions, rounds, flops, memory, error) -> None:
    peak = FmaPeak()
    seconds = timed(functions | {"fma peak": peak}, rounds)
    del seconds["fma peak"]
    ours = seconds["thawkit"]
    peers = {name: s for name, s in seconds.items() if name not in ("thawkit", "bare products")}
    fastest = min(peers, key=peers.__getitem__)
    report.row(
        loss=loss,
        size=size,
        ms={name: round(1e3 * s, 3) for name, s in seconds.items()},
        fma_peak_gflops=peak.value() / 1e9,
        share_of_fma_peak=flops / peak.value() / ours,
        of_bare_products=ours / seconds["bare products"],
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / ours,
        speedup={name: round(s / ours, 2) for name, s in peers.items()},
        extra_mib={name: round(b / 2**20, 2) for name, b in memory.items()},
        memory_ratio=memory["eager"] / max(memory["thawkit"], 1),
        gradient_difference=error,
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    report = Report("mmd", options)
    mmd(
        report,
        *((256, 64) if options.quick else (4096, 256)),
        options.rounds,
        compiled=not options.quick,
    )
    for rows in (36, 512):
        mmd(report, rows, 256, options.rounds * 20, compiled=False)
    report.write()


if __name__ == "__main__":
    main()
