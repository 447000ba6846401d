"""Contrastive losses, forward and backward: against torch's best forms, other libraries, and the FMA peak.

Peers of each loss: eager torch, torch.compile, torch's own chunked ``linear_cross_entropy`` where it can say
the same, and the libraries of the extra ``peers`` that are installed. Limits: the products that the loss
cannot avoid, at the FMA peak of registers, and the same products as torch computes them at full size.

Rows are of length 1 before they come in, so that every peer does the same work.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from common import FmaPeak, Report, compiled, extra_bytes, parser, timed
from torch import Tensor
from torch.nn import functional as F

from thawkit.losses import functional as L

SCALE = 14.0
TEMPERATURE = 0.1
MOST_PAIRS = 8192**2  # beyond, a peer that stores a matrix of pairs several times takes the machine down

Loss = Callable[..., Tensor]


@dataclass
class Case:
    loss: str
    size: str
    leaves: tuple[Tensor, ...]
    ours: Loss
    eager: Loss
    flops: float
    bare_products: Callable[[], None]
    pairs: int
    peers: dict[str, Loss] = field(default_factory=dict)


def unit_rows(rows: int, features: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(rows, features), dim=1).to(dtype).requires_grad_()


def full_products(x: Tensor, y: Tensor, count: int) -> Callable[[], None]:
    """Return ``count`` of S = X Y^T, S Y, S^T X and S once more, by torch at full size."""
    x, y = x.detach(), y.detach()
    if len(x) * len(y) > 2 * MOST_PAIRS:
        return lambda: None
    scores = torch.empty(len(x), len(y), dtype=x.dtype)
    left, right = torch.empty_like(x), torch.empty_like(y)

    def run() -> None:
        torch.mm(x, y.t(), out=scores)
        if count == 4:
            torch.mm(x, y.t(), out=scores)
        torch.mm(scores, y, out=left)
        torch.mm(scores.t(), x, out=right)

    return run


def chunked(x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.linear_cross_entropy(x, y, target, options=torch.nn.LinearCrossEntropyOptions())


def peer(package: str, name: str, make: Callable) -> dict[str, Loss]:
    """Return the peer's loss under its package's name, nothing where it is not installed."""
    with contextlib.suppress(ImportError):
        return {package: make(getattr(importlib.import_module(name), package, importlib.import_module(name)))}
    return {}


def info_nce(rows: int, features: int, dtype: torch.dtype) -> Case:
    q, k = unit_rows(rows, features, dtype), unit_rows(rows, features, dtype)
    target = torch.arange(rows)
    return Case(
        "info_nce",
        f"{rows}x{features}",
        (q, k),
        lambda q, k: L.info_nce(q, k, logit_scale=SCALE, normalize=False),
        lambda q, k: F.cross_entropy(q @ k.t() * SCALE, target),
        6 * rows * rows * features,
        full_products(q, k, 3),
        rows * rows,
        {"torch chunked": lambda q, k: chunked(q * SCALE, k, target)},
    )


def clip(rows: int, features: int, dtype: torch.dtype) -> Case:
    x, y = unit_rows(rows, features, dtype), unit_rows(rows, features, dtype)
    target = torch.arange(rows)

    def eager(x: Tensor, y: Tensor) -> Tensor:
        logits = SCALE * x @ y.t()
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2

    def open_clip(module) -> Loss:
        loss = module.ClipLoss()
        scale = torch.tensor(SCALE, dtype=dtype)
        return lambda x, y: loss(x, y, scale)

    return Case(
        "clip",
        f"{rows}x{features}",
        (x, y),
        lambda x, y: L.clip(x, y, logit_scale=SCALE, normalize=False),
        eager,
        8 * rows * rows * features,
        full_products(x, y, 4),
        rows * rows,
        {
            "torch chunked": lambda x, y: (chunked(x * SCALE, y, target) + chunked(y * SCALE, x, target)) / 2,
            **peer("open_clip", "open_clip.loss", open_clip),
        },
    )


def siglip(rows: int, features: int, dtype: torch.dtype) -> Case:
    x, y = unit_rows(rows, features, dtype), unit_rows(rows, features, dtype)
    bias = -10.0

    def eager(x: Tensor, y: Tensor) -> Tensor:
        signs = 2 * torch.eye(rows, dtype=x.dtype) - 1
        return -F.logsigmoid(signs * (SCALE * x @ y.t() + bias)).sum() / rows

    def open_clip(module) -> Loss:
        loss = module.SigLipLoss()
        scale, offset = torch.tensor(SCALE, dtype=dtype), torch.tensor(bias, dtype=dtype)
        return lambda x, y: loss(x, y, scale, offset)

    return Case(
        "siglip",
        f"{rows}x{features}",
        (x, y),
        lambda x, y: L.siglip(x, y, logit_scale=SCALE, logit_bias=bias, normalize=False),
        eager,
        6 * rows * rows * features,
        full_products(x, y, 3),
        rows * rows,
        peer("open_clip", "open_clip.loss", open_clip),
    )


def nt_xent(rows: int, features: int, dtype: torch.dtype) -> Case:
    """``rows`` is the number of all rows, two views of half as many samples."""
    half = rows // 2
    z1, z2 = unit_rows(half, features, dtype), unit_rows(half, features, dtype)
    partner = torch.arange(rows).roll(half)
    itself = torch.eye(rows, dtype=torch.bool)

    def eager(z1: Tensor, z2: Tensor) -> Tensor:
        z = torch.cat((z1, z2))
        return F.cross_entropy((z @ z.t() / TEMPERATURE).masked_fill(itself, -torch.inf), partner)

    def lightly(module) -> Loss:
        loss = module.NTXentLoss(temperature=TEMPERATURE)
        return loss.__call__

    def metric_learning(module) -> Loss:
        loss = module.NTXentLoss(temperature=TEMPERATURE)
        labels = torch.arange(half).repeat(2)
        return lambda z1, z2: loss(torch.cat((z1, z2)), labels)

    z = torch.cat((z1, z2))
    peers = peer("lightly", "lightly.loss", lightly)
    if rows <= 512:  # it stores the positives times the negatives
        peers |= peer("pytorch_metric_learning", "pytorch_metric_learning.losses", metric_learning)
    return Case(
        "nt_xent",
        f"{rows}x{features}",
        (z1, z2),
        lambda z1, z2: L.nt_xent(z1, z2, temperature=TEMPERATURE, normalize=False),
        eager,
        4 * rows * rows * features,  # S twice and its product, over the triangle
        full_products(z, z, 3),
        rows * rows,
        peers,
    )


def supcon(rows: int, features: int, dtype: torch.dtype) -> Case:
    z = unit_rows(rows, features, dtype)
    labels = torch.arange(rows) // 8
    others = ~torch.eye(rows, dtype=torch.bool)
    same = (labels[:, None] == labels) & others
    share = same / same.sum(1, keepdim=True)

    def eager(z: Tensor) -> Tensor:
        log_p = (z @ z.t() / TEMPERATURE).masked_fill(~others, torch.finfo(z.dtype).min).log_softmax(1)
        return -(share * log_p).sum(1).mean()

    def metric_learning(module) -> Loss:
        loss = module.SupConLoss(temperature=TEMPERATURE)
        return lambda z: loss(z, labels)

    return Case(
        "supcon",
        f"{rows}x{features}",
        (z,),
        lambda z: L.supcon(z, labels, temperature=TEMPERATURE, normalize=False),
        eager,
        4 * rows * rows * features,  # as NT-Xent
        full_products(z, z, 3),
        rows * rows,
        peer("pytorch_metric_learning", "pytorch_metric_learning.losses", metric_learning),
    )


def linear_cross_entropy(rows: int, classes: int, features: int, dtype: torch.dtype) -> Case:
    x, weight = unit_rows(rows, features, dtype), unit_rows(classes, features, dtype)
    target = torch.randint(classes, (rows,))
    return Case(
        "linear_cross_entropy",
        f"{rows}x{classes}x{features}",
        (x, weight),
        lambda x, weight: L.linear_cross_entropy(x, weight, target),
        lambda x, weight: F.cross_entropy(x @ weight.t(), target),
        6 * rows * classes * features,
        full_products(x, weight, 3),
        rows * classes,
        {"torch chunked": lambda x, weight: chunked(x, weight, target)},
    )


def measure(report: Report, case: Case, rounds: int, compiling: bool) -> None:
    losses = {"thawkit": case.ours, **case.peers}
    if case.pairs <= MOST_PAIRS:
        losses["eager"] = case.eager
        if compiling:
            losses["torch.compile"] = compiled(case.eager)

    def step(loss: Loss) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(loss(*case.leaves), case.leaves)

    functions = {name: step(loss) for name, loss in losses.items()}
    reference = functions.get("eager", functions.get("torch chunked", functions["thawkit"]))
    difference = max(
        ((a.double() - b.double()).norm() / b.double().norm()).item()
        for a, b in zip(functions["thawkit"](), reference(), strict=True)
    )
    memory = {name: extra_bytes(function) for name, function in functions.items()}
    peak = FmaPeak(case.leaves[0].dtype)
    calls = 10 if case.pairs <= 512**2 else 1
    timed_functions = {**functions, "bare products": case.bare_products}
    seconds = timed({**timed_functions, "fma peak": peak}, rounds, limit_s=40, calls=calls)
    del seconds["fma peak"]
    bare = seconds.pop("bare products")
    ours = seconds["thawkit"]
    peers = {name: s for name, s in seconds.items() if name != "thawkit"}
    fastest = min(peers, key=peers.__getitem__)
    report.row(
        loss=case.loss,
        size=case.size,
        dtype=str(case.leaves[0].dtype).removeprefix("torch."),
        ms={name: round(1e3 * s, 3) for name, s in seconds.items()},
        fma_peak_gflops=peak.value() / 1e9,
        share_of_fma_peak=case.flops / peak.value() / ours,
        of_bare_products=ours / bare if bare > 1e-5 else None,
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / ours,
        speedup={name: round(s / ours, 2) for name, s in peers.items()},
        extra_mib={name: round(b / 2**20, 2) for name, b in memory.items()},
        gradient_difference=difference,
    )


def cases(quick: bool) -> list[Callable[[], Case]]:
    """Return what makes the cases, one after the other: together they would not fit into memory."""
    sizes = [(256, 128), (1024, 128)] if quick else [(256, 128), (1024, 128), (4096, 128), (8192, 128)]
    wide = [] if quick else [(2048, 512), (8192, 512), (4096, 768)]
    single, half = torch.float32, torch.bfloat16
    out: list[Callable[[], Case]] = [lambda n=rows: info_nce(n, 128, single) for rows in (32, 64, 128)]
    for make, more in ((info_nce, wide), (clip, wide[1:2]), (siglip, wide[1:2]), (nt_xent, wide[:1])):
        out += [lambda m=make, s=size: m(*s, single) for size in sizes + more]
    out += [
        lambda s=size: supcon(*s, single) for size in ([(512, 128)] if quick else [(512, 128), (4096, 128)])
    ]
    out.append(lambda: nt_xent(512, 128, single))
    if not quick:
        out.append(lambda: info_nce(32768, 128, single))
        layers = (1024, 1000, 256), (4096, 1000, 512), (1024, 32000, 256), (4096, 32000, 512)
        out += [lambda s=size: linear_cross_entropy(*s, single) for size in layers]
        for make in (info_nce, clip, siglip):
            out += [lambda m=make, s=size: m(*s, half) for size in ((8192, 128), (8192, 512))]
    return out


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--losses", nargs="*", help="only these (info_nce, clip, ...)")
    options = options.parse_args()
    torch.manual_seed(0)
    report = Report("contrastive", options)
    try:
        for make in cases(options.quick):
            case = make()
            if options.losses and case.loss not in options.losses:
                continue
            rounds = options.rounds * (4 if case.pairs <= 1024**2 else 1)
            measure(report, case, rounds, compiling=not options.quick)
    finally:
        report.write()  # what there is of an interrupted run


if __name__ == "__main__":
    main()
