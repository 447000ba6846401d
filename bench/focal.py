"""Sigmoid focal loss, forward and backward: against torchvision, torch.compile and the copy bandwidth.

Limit: reading logits and targets once and writing the gradient once, at the bandwidth of a large copy.
"""

from __future__ import annotations

import torch
from common import Report, copy_bandwidth, extra_bytes, parser, timed
from torchvision.ops import sigmoid_focal_loss

from thawkit.losses import functional as L


def focal(
    report: Report, count: int, dtype: torch.dtype, bandwidth: float, rounds: int, compiled: bool
) -> None:
    x = torch.randn(count).to(dtype).requires_grad_()
    t = (torch.rand(count) < 0.01).to(dtype)
    written = torch.empty_like(x)
    raw = x.detach()
    functions = {
        "thawkit": lambda: torch.autograd.grad(L.sigmoid_focal_loss(x, t, reduction="mean"), x),
        "torchvision": lambda: torch.autograd.grad(sigmoid_focal_loss(x, t, reduction="mean"), x),
        "two reads, one write": lambda: torch.add(raw, t, out=written),
    }
    if compiled:
        step = torch.compile(lambda x, t: sigmoid_focal_loss(x, t, reduction="mean"))
        functions["torch.compile"] = lambda: torch.autograd.grad(step(x, t), x)
    ours, theirs = functions["thawkit"]()[0].double(), functions["torchvision"]()[0].double()
    memory = {name: extra_bytes(functions[name]) for name in ("thawkit", "torchvision")}
    seconds = timed(functions, rounds)
    mine = seconds["thawkit"]
    peers = {name: seconds[name] for name in ("torchvision", "torch.compile") if name in seconds}
    fastest = min(peers, key=peers.__getitem__)
    report.row(
        loss="sigmoid_focal",
        size=f"{count} {str(dtype).removeprefix('torch.')}",
        ms={name: round(1e3 * s, 4) for name, s in seconds.items()},
        share_of_copy_bandwidth=3 * x.nbytes / bandwidth / mine,
        of_two_reads_one_write=mine / seconds["two reads, one write"],
        fastest_peer=fastest,
        speedup_over_fastest_peer=peers[fastest] / mine,
        speedup={name: round(s / mine, 2) for name, s in peers.items()},
        extra_mib={name: round(b / 2**20, 2) for name, b in memory.items()},
        gradient_difference=((ours - theirs).norm() / theirs.norm()).item(),
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    report = Report("focal", options, notes={"copy_bandwidth_gb_s": bandwidth / 1e9})
    print(f"copy {bandwidth / 1e9:.1f} GB/s")
    counts = [100_000, 3_200_000] if options.quick else [100_000, 1_000_000, 3_200_000, 20_000_000]
    for dtype in (torch.float32, torch.bfloat16):
        for count in counts:
            rounds = options.rounds * (10 if count <= 1_000_000 else 3)
            focal(report, count, dtype, bandwidth, rounds, compiled=not options.quick)
    report.write()


if __name__ == "__main__":
    main()
