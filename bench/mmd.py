"""MMD, forward and backward: against torch's best forms, its bare products and the FMA peak.

Five RBF kernels around the mean squared distance, or as many given bandwidths for the peers that take nothing
else. Peers: eager torch with ``cdist``, with its products and squarings of one exponential, torch.compile of
both, Transfer-Learning-Library's formula (a difference of all pairs of rows for every kernel), geomloss
(one bandwidth a call) and KeOps, where they are installed and where 1 GiB holds what they store. Limits: the
products alone at the FMA peak, and torch's own products alone. Last comes one call at 50,000+50,000.
"""

from __future__ import annotations

import importlib.util
import time

import torch
from common import FmaPeak, Report, compiled, extra_bytes, parser, timed

from thawkit.losses import functional as L

EXPONENTS = range(-2, 3)
LARGEST = 1 << 30  # bytes that a peer may store in one tensor


def mean_squared_distance(d2):
    return d2.detach().sum() / (d2.shape[0] * (d2.shape[0] - 1))


def three_means(kernel, rows):
    within = kernel[:rows, :rows].mean() + kernel[rows:, rows:].mean()
    return within - 2 * kernel[:rows, rows:].mean()


def cdist_form(x, y):
    z = torch.cat((x, y))
    d2 = torch.cdist(z, z) ** 2
    mean = mean_squared_distance(d2)
    return three_means(sum(torch.exp(-d2 / (2 * mean * 2.0**e)) for e in EXPONENTS), x.shape[0])


def products_form(x, y):
    z = torch.cat((x, y))
    z = z - z.detach().mean(0)
    norms = z.square().sum(1)
    d2 = torch.addmm(norms[:, None] + norms, z, z.t(), alpha=-2)
    powers = [torch.exp(d2 * (-0.5 * 2.0 ** EXPONENTS[0] / mean_squared_distance(d2)))]
    for _ in EXPONENTS[1:]:
        powers.append(powers[-1].square())
    return three_means(sum(powers), x.shape[0])


def index_matrix(rows):
    """What pairs count in Transfer-Learning-Library's ``_update_index_matrix``."""
    index = torch.full((2 * rows, 2 * rows), 1 / (rows * (rows - 1)))
    index[:rows, rows:] = index[rows:, :rows] = -1 / rows**2
    return index.fill_diagonal_(0)


def library_form(x, y, index):
    """``MultipleKernelMaximumMeanDiscrepancy([GaussianKernel(alpha=2**e) ...])``, whose index is kept."""
    z = torch.cat((x, y))

    def gaussian(alpha):
        squares = ((z.unsqueeze(0) - z.unsqueeze(1)) ** 2).sum(2)
        return torch.exp(-squares / (2 * alpha * squares.detach().mean()))

    kernel = sum(gaussian(2.0**e) for e in EXPONENTS)
    return (kernel * index).sum() + 2.0 / (x.shape[0] - 1)


def geomloss_form(x, y, bandwidths):
    from geomloss import SamplesLoss

    each = [SamplesLoss("gaussian", blur=s, backend="tensorized") for s in bandwidths]
    return 2 * sum(loss(x, y) for loss in each)


def keops_form(x, y, bandwidths):
    from pykeops.torch import LazyTensor

    def mean(u, v):
        d2 = ((LazyTensor(u[:, None]) - LazyTensor(v[None])) ** 2).sum(-1)
        kernel = sum((-d2 / (2 * s * s)).exp() for s in bandwidths)
        return kernel.sum(1).sum() / (u.shape[0] * v.shape[0])

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def mmd(report: Report, rows: int, features: int, rounds: int, compiling: bool, quick: bool) -> None:
    x = torch.randn(rows, features, requires_grad=True)
    y = (torch.randn(rows, features) + 0.1).requires_grad_()
    both = torch.cat((x, y)).detach()
    scores, out = torch.empty(2 * rows, 2 * rows), torch.empty(2 * rows, features)
    mean = (both - both.mean(0)).square().sum() * 2 / (2 * rows - 1)
    bandwidths = [(mean * 2.0**e).sqrt().item() for e in EXPONENTS]

    def step(loss, *options):
        return lambda: torch.autograd.grad(loss(x, y, *options), (x, y))

    def bare_products():
        torch.mm(both, both.t(), out=scores)
        torch.mm(scores, both, out=out)

    functions = {
        "thawkit": step(L.mmd),
        "eager": step(cdist_form),
        "eager products": step(products_form),
        "bare products": bare_products,
    }
    if compiling:
        # both before either runs, as compiled() forgets what has been compiled before it
        functions["torch.compile"] = step(compiled(cdist_form))
        functions["torch.compile products"] = step(compiled(products_form))
    if (2 * rows) ** 2 * features * 4 <= LARGEST // 4:
        functions["Transfer-Learning-Library"] = step(library_form, index_matrix(rows))
    if importlib.util.find_spec("geomloss"):
        functions["geomloss"] = step(geomloss_form, bandwidths)
    if importlib.util.find_spec("pykeops") and not quick:
        functions["KeOps"] = step(keops_form, bandwidths)
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
    calls = 10 if flops <= 1e8 else 1
    seconds = timed(functions | {"fma peak": peak}, rounds, calls=calls)
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


def large(report: Report, rows: int, features: int) -> None:
    """One call, whose memory counts; the matrix of pairs alone is named beside it."""
    x = torch.randn(rows, features, requires_grad=True)
    y = (torch.randn(rows, features) + 0.1).requires_grad_()
    peak = FmaPeak()
    peak()
    start = time.perf_counter()
    memory = extra_bytes(lambda: torch.autograd.grad(L.mmd(x, y), (x, y)))
    seconds = time.perf_counter() - start
    peak()
    report.notes["large"] = {
        "size": f"{rows}+{rows}x{features}",
        "seconds": round(seconds, 2),
        "extra_mib": round(memory / 2**20, 1),
        "one_matrix_of_pairs_mib": (2 * rows) ** 2 * 4 / 2**20,
        "share_of_fma_peak": 3 * (2 * rows) ** 2 * features / peak.value() / seconds,
    }
    print("  ".join(f"{key}={value}" for key, value in report.notes["large"].items()), flush=True)


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    report = Report("mmd", options)
    mmd(
        report,
        *((256, 64) if options.quick else (4096, 256)),
        options.rounds,
        compiling=not options.quick,
        quick=options.quick,
    )
    for rows in (36, 512):
        mmd(report, rows, 256, options.rounds * 20, compiling=not options.quick, quick=options.quick)
    if not options.quick:
        large(report, 50_000, 256)
    report.write()


if __name__ == "__main__":
    main()
