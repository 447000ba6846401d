"""Focal losses, forward and backward: against eager torch, torch.compile, kornia and the copy bandwidth.

Limit: reading logits and targets once and writing the gradient once, into memory that is there already, at
the bandwidth of a large copy; beside it the time of ``torch.add`` on the same bytes. Eager is torchvision's
loss of independent classes, and of exclusive ones the textbook's, ``(1 - p)^2 (-log p)`` of ``log_softmax``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from common import Report, compiled, copy_bandwidth, extra_bytes, parser, timed
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from thawkit.losses import functional as L

SIGMOID = [100_000, 1_000_000, 3_200_000, 20_000_000, 64_000_000]
SOFTMAX = [(100_000, 80), (10_000, 1000)]


def softmax_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


def kornia_losses() -> dict[str, Callable[..., Tensor]]:
    if importlib.util.find_spec("kornia") is None:
        return {}
    from kornia import losses

    return {
        "sigmoid": lambda x, t: losses.binary_focal_loss_with_logits(x, t, reduction="mean"),
        "softmax": lambda x, t: losses.focal_loss(x, t, None, reduction="sum"),
    }


def measure(
    report: Report,
    loss: str,
    size: str,
    x: Tensor,
    losses: dict[str, Callable[[], Tensor]],
    eager: str,
    bandwidth: float,
    read: Callable[[Tensor], object],
    nbytes: int,
    rounds: int,
) -> None:
    """One row: ``losses`` by name, the gradient of each in turn; ``read`` reads and writes ``nbytes``."""
    functions = {name: lambda of=of: torch.autograd.grad(of(), x) for name, of in losses.items()}
    ours, theirs = functions["thawkit"]()[0].double(), functions[eager]()[0].double()
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    del ours, theirs
    memory = {name: extra_bytes(functions[name]) for name in ("thawkit", eager)}
    written = torch.empty_like(x.detach())
    calls = 10 if x.numel() <= 1_000_000 else 1
    seconds = timed({**functions, "the same bytes": lambda: read(written)}, rounds, calls=calls)
    mine = seconds["thawkit"]
    peers = {name: seconds[name] for name in functions if name != "thawkit"}
    fastest = min(peers, key=peers.__getitem__)
    report.row(
        loss=loss,
        size=size,
        ms={name: round(1e3 * s, 4) for name, s in seconds.items()},
        share_of_copy_bandwidth=nbytes / bandwidth / mine,
        of_the_same_bytes=mine / seconds["the same bytes"],
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / mine,
        speedup={name: round(s / mine, 2) for name, s in peers.items()},
        extra_mib={name: round(b / 2**20, 2) for name, b in memory.items()},
        gradient_difference=difference,
    )


def sigmoid(
    report: Report, count: int, dtype: torch.dtype, bandwidth: float, rounds: int, compiling: bool
) -> None:
    x = torch.randn(count // 100, 100).to(dtype).requires_grad_()
    t = (torch.rand(count // 100, 100) < 0.01).to(dtype)
    raw = x.detach()
    losses = {
        "thawkit": lambda: L.sigmoid_focal_loss(x, t, reduction="mean"),
        "torchvision": lambda: sigmoid_focal_loss(x, t, reduction="mean"),
    }
    if kornia := kornia_losses():
        losses["kornia"] = lambda: kornia["sigmoid"](x, t)
    if compiling:
        step = compiled(lambda x, t: sigmoid_focal_loss(x, t, reduction="mean"))
        losses["torch.compile"] = lambda: step(x, t)
    size = f"{count} {str(dtype).removeprefix('torch.')}"
    read = lambda out: torch.add(raw, t, out=out)
    measure(
        report, "sigmoid_focal", size, x, losses, "torchvision", bandwidth, read, 3 * x.nbytes, rounds
    )  # fmt: skip


def softmax(
    report: Report,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    bandwidth: float,
    rounds: int,
    compiling: bool,
) -> None:
    x = torch.randn(rows, classes).to(dtype).requires_grad_()
    t = torch.randint(0, classes, (rows,))
    raw = x.detach()
    losses = {"thawkit": lambda: L.focal_loss(x, t), "eager": lambda: softmax_focal_loss(x, t)}
    if kornia := kornia_losses():
        losses["kornia"] = lambda: kornia["softmax"](x, t) / rows
    if compiling:
        step = compiled(softmax_focal_loss)
        losses["torch.compile"] = lambda: step(x, t)
    size = f"{rows}x{classes} {str(dtype).removeprefix('torch.')}"
    read = lambda out: out.copy_(raw)
    measure(report, "focal", size, x, losses, "eager", bandwidth, read, 2 * x.nbytes, rounds)


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    report = Report("focal", options, notes={"copy_bandwidth_gb_s": bandwidth / 1e9})
    print(f"copy {bandwidth / 1e9:.1f} GB/s")
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for count in SIGMOID[:3:2] if options.quick else SIGMOID:
                rounds = options.rounds * (10 if count <= 1_000_000 else 3 if count < 20_000_000 else 1)
                sigmoid(report, count, dtype, bandwidth, rounds, compiling=not options.quick)
            for rows, classes in SOFTMAX:
                rows = rows // 10 if options.quick else rows
                softmax(report, rows, classes, dtype, bandwidth, options.rounds, compiling=not options.quick)
    finally:
        report.write()


if __name__ == "__main__":
    main()
