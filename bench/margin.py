"""Triplet and contrastive losses, forward and backward: beside plain torch, torch.compile and a library.

"eager" is the definition that thawkit's tests compare with, which sorts where others form every triplet. Rows
are of length 1 and come in classes of 8; the means are over what costs something, as the library has it. Its
semi-hard miner takes all such triplets, and its contrastive loss has a mean each of positives and negatives.
"""

from __future__ import annotations

import torch
from common import Report, parser
from contrastive import Case, Loss, measure, peer, unit_rows

from thawkit import ops
from thawkit.losses import functional as L

PER_CLASS = 8
MARGIN = 0.2
PRODUCTS = {"all": 2, "hard": 1, "semihard": 1, "contrastive": 2}  # that the loss cannot avoid


def case(kind: str, rows: int, features: int) -> Case:
    z = unit_rows(rows, features, torch.float32)
    labels = torch.arange(rows) // PER_CLASS

    def ours(z: torch.Tensor) -> torch.Tensor:
        if kind == "contrastive":
            return L.contrastive(z, labels)
        return L.triplet_margin(z, labels, margin=MARGIN, mining=kind, reduction="mean_nonzero")

    def eager(z: torch.Tensor) -> torch.Tensor:
        with ops.use_backend("reference"):
            return ours(z)

    def metric_learning(module) -> Loss:
        from pytorch_metric_learning import miners

        if kind == "contrastive":
            pairs = module.ContrastiveLoss()
            return lambda z: pairs(z, labels)
        loss = module.TripletMarginLoss(margin=MARGIN)
        miner = {
            "all": lambda z, labels: None,
            "hard": miners.BatchHardMiner(),
            "semihard": miners.TripletMarginMiner(MARGIN, "semihard"),
        }[kind]
        return lambda z: loss(z, labels, miner(z, labels))

    def bare_products() -> None:
        scores, raw = torch.empty(rows, rows), z.detach()
        torch.mm(raw, raw.t(), out=scores)
        for _ in range(PRODUCTS[kind] - 1):
            torch.mm(scores, raw)

    return Case(
        kind,
        f"{rows}x{features}",
        (z,),
        ours,
        eager,
        2 * PRODUCTS[kind] * rows * rows * features,
        bare_products,
        rows * rows,
        # unless it looks for the hardest only, it stores each triplet, 2 million for 512 rows
        peer("pytorch_metric_learning", "pytorch_metric_learning.losses", metric_learning)
        if kind in ("hard", "contrastive") or rows <= 512
        else {},
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    report = Report("margin", options)
    for kind in PRODUCTS:
        for rows in (512,) if options.quick else (512, 2048, 4096):
            rounds = options.rounds * (4 if rows <= 512 else 1)
            measure(report, case(kind, rows, 128), rounds, compiling=not options.quick)
    report.write()


if __name__ == "__main__":
    main()
