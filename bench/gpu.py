"""All that is to be measured on a GPU, in one run: forward and backward beside peers and limits.

CLIP and SigLIP from 4,096 pairs to 262,144, InfoNCE, the cross-entropy of a linear classifier, MMD and the
focal losses, in bfloat16 but for MMD, which is float32. Limits: the products that a loss cannot avoid, by
cuBLAS alone (three of which one that stores no scores makes a fourth, and MMD half of each), and of the
focal losses reading and writing the same bytes. Peers where they can be imported: eager torch, the same
compiled, torch's chunked ``linear_cross_entropy``, Liger, cut-cross-entropy, Inf-CL and siglip-kernel.
Whatever fails is in the result file with its reason, and what there is of that is written after every case.

    python bench/gpu.py                          # needs a GPU; exits with status 2 where there is none
    python bench/gpu.py --device cpu --quick     # tries the script with tiny sizes
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerator import Cpu, Cuda, Measured, measure, reason
from common import RESULTS, Report, parser
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from thawkit.losses import functional as L

SCALE, BIAS = 14.0, -10.0
PANEL_BYTES = 1 << 31  # of the scores that the bare products hold at once

Loss = Callable[..., Tensor]

ABSENT: dict[str, str] = {}  # peers that cannot be imported, and why


@dataclass
class Case:
    """A loss of ``leaves``: ours, the peers', and what limits them."""

    loss: str
    size: str
    leaves: tuple[Tensor, ...]
    ours: Loss
    peers: dict[str, Loss]
    limit: Callable[[], object]
    flops: float = 0.0
    nbytes: int = 0
    stored: dict[str, int] = field(default_factory=dict)
    """Bytes that a peer stores beside its inputs, where that may be more than there are."""


def peer(name: str, module: str, make: Callable[..., Loss]) -> dict[str, Loss]:
    """Return the peer's loss by name, nothing where it cannot be imported."""
    if name in ABSENT:
        return {}
    try:
        return {name: make(importlib.import_module(module))}
    except Exception as error:  # some peers raise anything where there is no GPU
        ABSENT[name] = f"{type(error).__name__}: {error}"
        print(f"without {name}: {ABSENT[name]}")
        return {}


def chunked_peers(weight_of_scale: float, target: Tensor) -> dict[str, Loss]:
    """Cross-entropies of ``scale * x @ k.T`` that never store the scores."""

    def torch_form(function: object) -> Loss:
        return lambda x, k: function.linear_cross_entropy(
            x * weight_of_scale, k, target, options=torch.nn.LinearCrossEntropyOptions()
        )

    def liger(module: object) -> Loss:
        loss = module.LigerFusedLinearCrossEntropyLoss()
        return lambda x, k: loss(k, x * weight_of_scale, target)

    def cut(module: object) -> Loss:
        return lambda x, k: module.linear_cross_entropy(x * weight_of_scale, k, target)

    peers = peer("Liger", "liger_kernel.transformers", liger)
    peers |= peer("cut-cross-entropy", "cut_cross_entropy", cut)
    if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        peers |= peer("torch chunked", "torch.nn.functional", torch_form)
    else:
        ABSENT["torch chunked"] = f"torch {torch.__version__} has no linear_cross_entropy with options"
    return peers


def compiled(eager: Loss, like: Tensor) -> dict[str, Loss]:
    """Return eager torch compiled; of tensors of the CPU, which only try the script, nothing."""
    return {"compiled": torch.compile(eager, dynamic=False)} if like.is_cuda else {}


def both_ways(loss: Loss) -> Loss:
    return lambda x, y: (loss(x, y) + loss(y, x)) / 2


def inf_cl(module: object) -> Loss:
    scale = torch.tensor(SCALE)
    return lambda x, k: module.cal_flash_loss(x, k, None, scale.to(x.device)).mean()


def siglip_kernel(module: object) -> Loss:
    logarithm, bias = torch.tensor(math.log(SCALE)), torch.tensor(BIAS)
    return lambda x, y: module.fused_siglip_loss(x, y, logarithm.to(x.device), bias.to(x.device))


def bare_products(x: Tensor, y: Tensor, triangle: bool = False) -> Callable[[], None]:
    """Return S = X Y^T, then S Y and S^T X, by panels of S where it is large.

    Of X = Y its upper ``triangle`` may do, of which each product serves both rows.
    """
    x, y = x.detach(), y.detach()
    height = max(1, min(len(x), PANEL_BYTES // (len(y) * y.element_size())))
    panel = torch.empty(height, len(y), dtype=x.dtype, device=x.device)
    left, right = torch.empty_like(x), torch.zeros_like(y)

    def run() -> None:
        for first in range(0, len(x), height):
            rows, begin = x[first : first + height], first * triangle
            part, columns = panel[: len(rows), begin:], y[begin:]
            torch.mm(rows, columns.t(), out=part)
            torch.mm(part, columns, out=left[first : first + height])
            right[begin:].addmm_(part.t(), rows)

    return run


class Cases:
    """What is measured, one after the other: together the tensors would not fit into memory."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick

    def rows(self, count: int, features: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        x = torch.randn(count, features, device=self.device)
        return F.normalize(x, dim=1).to(dtype).requires_grad_()

    def clip(self, count: int, features: int) -> Case:
        x, y = self.rows(count, features), self.rows(count, features)
        target = torch.arange(count, device=self.device)

        def eager(x: Tensor, y: Tensor) -> Tensor:
            logits = SCALE * x @ y.t()
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2

        one_way = {**chunked_peers(SCALE, target), **peer("Inf-CL", "inf_cl", inf_cl)}
        return Case(
            "clip",
            f"{count}x{features}",
            (x, y),
            lambda x, y: L.clip(x, y, logit_scale=SCALE, normalize=False),
            {"eager": eager, **compiled(eager, x), **{n: both_ways(loss) for n, loss in one_way.items()}},
            bare_products(x, y),
            flops=6 * count * count * features,
            stored=dict.fromkeys(("eager", "compiled"), 12 * count * count),
        )

    def siglip(self, count: int, features: int) -> Case:
        x, y = self.rows(count, features), self.rows(count, features)

        def eager(x: Tensor, y: Tensor) -> Tensor:
            signs = 2 * torch.eye(count, dtype=x.dtype, device=x.device) - 1
            return -F.logsigmoid(signs * (SCALE * x @ y.t() + BIAS)).sum() / count

        return Case(
            "siglip",
            f"{count}x{features}",
            (x, y),
            lambda x, y: L.siglip(x, y, logit_scale=SCALE, logit_bias=BIAS, normalize=False),
            {"eager": eager, **compiled(eager, x), **peer("siglip-kernel", "siglip_kernel", siglip_kernel)},
            bare_products(x, y),
            flops=6 * count * count * features,
            stored=dict.fromkeys(("eager", "compiled"), 14 * count * count),
        )

    def info_nce(self, count: int, features: int) -> Case:
        q, k = self.rows(count, features), self.rows(count, features)
        target = torch.arange(count, device=self.device)
        return Case(
            "info_nce",
            f"{count}x{features}",
            (q, k),
            lambda q, k: L.info_nce(q, k, logit_scale=SCALE, normalize=False),
            {
                "eager": lambda q, k: F.cross_entropy(q @ k.t() * SCALE, target),
                **chunked_peers(SCALE, target),
                **peer("Inf-CL", "inf_cl", inf_cl),
            },
            bare_products(q, k),
            flops=6 * count * count * features,
            stored=dict.fromkeys(("eager", "compiled"), 8 * count * count),
        )

    def linear_cross_entropy(self, count: int, classes: int, features: int) -> Case:
        x, weight = self.rows(count, features), self.rows(classes, features)
        target = torch.randint(classes, (count,), device=self.device)
        return Case(
            "linear_cross_entropy",
            f"{count}x{classes}x{features}",
            (x, weight),
            lambda x, weight: L.linear_cross_entropy(x, weight, target),
            {
                "eager": lambda x, weight: F.cross_entropy(x @ weight.t(), target),
                **chunked_peers(1.0, target),
            },
            bare_products(x, weight),
            flops=6 * count * classes * features,
            stored=dict.fromkeys(("eager", "compiled"), 8 * count * classes),
        )

    def mmd(self, count: int, features: int) -> Case:
        x, y = (torch.randn(count, features, device=self.device) for _ in range(2))
        x, y = x.requires_grad_(), (y + 0.1).requires_grad_()
        both = torch.cat((x, y))
        bandwidths = torch.tensor([features**0.5 * 2.0**e for e in range(-2, 3)], device=self.device)

        def eager(x: Tensor, y: Tensor) -> Tensor:
            z = torch.cat((x, y))
            d2 = torch.cdist(z, z).square()
            k = sum(torch.exp(-d2 / (2 * s * s)) for s in bandwidths)
            return k[:count, :count].mean() + k[count:, count:].mean() - 2 * k[:count, count:].mean()

        return Case(
            "mmd",
            f"{count}+{count}x{features}, 5 bandwidths",
            (x, y),
            lambda x, y: L.mmd(x, y, bandwidths=bandwidths),
            {"eager": eager},
            bare_products(both, both, triangle=True),
            flops=3 * (2 * count) ** 2 * features,
            stored=dict.fromkeys(("eager", "compiled"), 48 * (2 * count) ** 2),
        )

    def sigmoid_focal(self, count: int) -> Case:
        x = torch.randn(count // 80, 80, device=self.device).bfloat16().requires_grad_()
        t = (torch.rand(count // 80, 80, device=self.device) < 0.01).bfloat16()
        eager = lambda x: sigmoid_focal_loss(x, t, reduction="mean")
        out = torch.empty_like(x)
        return Case(
            "sigmoid_focal",
            str(count),
            (x,),
            lambda x: L.sigmoid_focal_loss(x, t, reduction="mean"),
            {"eager": eager, **compiled(eager, x)},
            lambda: torch.add(x.detach(), t, out=out),
            nbytes=3 * x.nbytes,
        )

    def focal(self, count: int, classes: int) -> Case:
        x = torch.randn(count, classes, device=self.device).bfloat16().requires_grad_()
        t = torch.randint(classes, (count,), device=self.device)
        out = torch.empty_like(x)

        def eager(x: Tensor) -> Tensor:
            log_p = torch.log_softmax(x.float(), 1).gather(1, t.unsqueeze(1)).squeeze(1)
            return (-((1 - log_p.exp()) ** 2) * log_p).mean()

        return Case(
            "focal",
            f"{count}x{classes}",
            (x,),
            lambda x: L.focal_loss(x, t),
            {"eager": eager, **compiled(eager, x)},
            lambda: out.copy_(x.detach()),
            nbytes=2 * x.nbytes,
        )

    def __iter__(self) -> Iterator[Callable[[], Case]]:
        """The cases, what matters most first."""
        if self.quick:
            yield lambda: self.clip(48, 16)
            yield lambda: self.siglip(48, 16)
            yield lambda: self.info_nce(48, 16)
            yield lambda: self.linear_cross_entropy(32, 50, 16)
            yield lambda: self.mmd(40, 16)
            yield lambda: self.sigmoid_focal(800)
            yield lambda: self.focal(20, 10)
            return
        for count in (32768, 4096, 16384, 65536):
            yield lambda n=count: self.clip(n, 768)
            yield lambda n=count: self.siglip(n, 768)
        yield lambda: self.linear_cross_entropy(8192, 131072, 4096)
        yield lambda: self.sigmoid_focal(128_000_000)
        yield lambda: self.focal(1_000_000, 80)
        yield lambda: self.info_nce(32768, 768)
        yield lambda: self.mmd(10_000, 512)
        yield lambda: self.clip(262_144, 768)
        yield lambda: self.siglip(262_144, 768)
        yield lambda: self.mmd(100_000, 512)
        yield lambda: self.sigmoid_focal(8_000_000)


def run(machine: Cpu | Cuda, case: Case, rounds: int, limit_s: float) -> dict[str, object]:
    """Measure a case and return its row."""

    def step(loss: Loss) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(loss(*case.leaves), case.leaves)

    free = machine.free_bytes()
    too_large = {name for name in case.peers if case.stored.get(name, 0) > free}
    losses = {"thawkit": case.ours, **{n: loss for n, loss in case.peers.items() if n not in too_large}}
    functions = {name: step(loss) for name, loss in losses.items()}
    measured = measure(machine, {**functions, "limit": case.limit}, rounds, limit_s)
    measured.failed |= dict.fromkeys(sorted(too_large), "stores more than there is memory")
    return {"loss": case.loss, "size": case.size, **_figures(case, measured, functions)}


def _figures(case: Case, measured: Measured, functions: dict[str, Callable]) -> dict[str, object]:
    seconds = dict(measured.seconds)
    limit, ours = seconds.pop("limit", None), seconds.get("thawkit")
    peers = {name: s for name, s in seconds.items() if name != "thawkit"}
    fastest = min(peers, key=peers.__getitem__, default=None)
    return {
        "ms": {name: round(1e3 * s, 4) for name, s in seconds.items()},
        "limit_ms": limit and round(1e3 * limit, 4),
        "of_limit": limit and ours and ours / limit,
        "tflops": ours and case.flops / ours / 1e12,
        "gb_s": ours and case.nbytes / ours / 1e9,
        "fastest_peer": fastest,
        "speedup_over_fastest_peer": ours and fastest and peers[fastest] / ours,
        "peak_mib": {name: round(b / 2**20, 2) for name, b in measured.peak_bytes.items() if name != "limit"},
        "gradient_difference": _difference(functions, peers, measured),
        "rounds": measured.rounds,
        "failed": measured.failed,
    }


def _difference(
    functions: dict[str, Callable], peers: dict[str, float], measured: Measured
) -> dict[str, float]:
    """Return how far each peer's gradients are from ours, relative to their own norm."""
    if "thawkit" in measured.failed or not peers:
        return {}
    ours, out = functions["thawkit"](), {}
    for name in peers:
        try:
            theirs = functions[name]()
            out[name] = max(
                ((a.float() - b.float()).norm() / b.float().norm()).item()
                for a, b in zip(ours, theirs, strict=True)
            )
        except Exception as error:  # as where memory is short
            measured.failed[f"{name}, gradients"] = reason(error)
    return out


def no_gpu() -> str:
    """Return why there is no GPU to measure on, or an empty string."""
    if torch.cuda.is_available():
        return ""
    why = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
    return f"bench/gpu.py: {why}; --device cpu --quick tries the script with tiny sizes"


def options() -> argparse.Namespace:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments.add_argument(
        "--seconds", type=float, default=390, help="no case begins after these (default 390)"
    )
    arguments.add_argument(
        "--case-seconds", type=float, default=8, help="of counted rounds a case (default 8)"
    )
    return arguments.parse_args()


def main() -> int:
    chosen = options()
    if chosen.device == "cuda" and no_gpu():
        print(no_gpu(), file=sys.stderr)
        return 2
    if chosen.device == "cpu" and not chosen.quick:
        print("bench/gpu.py: --device cpu goes with --quick only", file=sys.stderr)
        return 2
    machine = Cuda() if chosen.device == "cuda" else Cpu()
    if not chosen.quick and not chosen.output:
        slug = "-".join("".join(c if c.isalnum() else " " for c in machine.name.lower()).split())
        chosen.output = RESULTS / f"gpu-{slug}.json"
    torch.manual_seed(0)
    report = Report("gpu", chosen, notes={"device": machine.name, **machine.facts(), "without": ABSENT})
    end = time.perf_counter() + chosen.seconds
    for make in Cases(machine.device, chosen.quick):
        if time.perf_counter() > end:
            report.notes["cut_short"] = f"after {chosen.seconds:.0f} s: the cases that follow were not begun"
            break
        try:
            report.row(
                **run(machine, make(), chosen.rounds, min(chosen.case_seconds, end - time.perf_counter()))
            )
        except torch.OutOfMemoryError as error:
            report.row(loss="", size="", failed={"inputs": str(error).splitlines()[0]})
        report.write()
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
