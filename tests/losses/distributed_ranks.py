"""One rank of the tests of losses across ranks: compares each case with one process that has all rows.

``python distributed_ranks.py RANK WORLD FOLDER`` writes ``FOLDER/RANK.json``: for each check that this rank
took part in, the traceback of what failed, or nothing.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import traceback
import types
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from thawkit import losses
from thawkit.errors import ThawkitError
from thawkit.losses import distributed as D
from thawkit.losses import functional as F
from thawkit.ops.pairwise.ranking import DIRECTIONS, HARDNESS

MODES = ("gather", "ring")
PROCESSES = 4
# The processes of each group, and how many rows each has: a last batch may be short, or empty.
GROUPS = {
    "1": ([2], [5]),
    "2": ([1, 3], [5, 1]),
    "3": ([0, 2, 3], [4, 1, 6]),
    "3 even": ([0, 1, 2], [4, 4, 4]),
    "4": ([0, 1, 2, 3], [3, 5, 0, 1]),
}
FEATURES = 6


def problem(rows: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the cases draw on. Scalars are alike on all ranks, everything else has a row a sample."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(rows, FEATURES, generator=generator)
    b, c, d = (a + torch.randn(rows, FEATURES, generator=generator) for _ in range(3))
    tensors = {
        "a": a,
        "b": b,
        "c": c,
        "d": d,
        "negatives": torch.randn(rows, 3, FEATURES, generator=generator),
        "weight": torch.rand(rows, generator=generator) + 0.5,
        "scale": torch.tensor(4.0),
        "bias": torch.tensor(-1.5),
        "temperature": torch.tensor(0.3),
    }
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    tensors["label"] = torch.randint(0, 3, (rows,), generator=generator)
    tensors["tags"] = torch.randint(0, 2, (rows, 4), generator=generator)
    tensors["sample"] = torch.arange(rows)
    return tensors


# Each takes the functions and the tensors of one process or of one rank; then what gets gradients.
CASES = {
    "info_nce": (lambda f, t: f.info_nce(t.a, t.b, logit_scale=t.scale), "a b scale"),
    "info_nce, inner products": (
        lambda f, t: f.info_nce(t.a, t.b, logit_scale=0.3, normalize=False),
        "a b",
    ),
    "info_nce, columns of negatives": (
        lambda f, t: f.info_nce(t.a, torch.cat((t.b, t.c, t.d)), logit_scale=t.scale),
        "a b c d scale",
    ),
    "info_nce, shared negatives": (
        lambda f, t: f.info_nce(t.a, t.b, negatives=torch.cat((t.c, t.d)), logit_scale=t.scale),
        "a b c d scale",
    ),
    "info_nce, shared negatives only": (
        lambda f, t: f.info_nce(t.a, t.b, negatives=t.c, in_batch=False, logit_scale=t.scale),
        "a b c scale",
    ),
    "info_nce, no negatives": (
        lambda f, t: f.info_nce(t.a, t.b, negatives=t.c[:0], in_batch=False, logit_scale=t.scale),
        "a b scale",
    ),
    "info_nce, own negatives": (
        lambda f, t: f.info_nce(t.a, t.b, negatives=t.negatives, logit_scale=t.scale),
        "a b negatives scale",
    ),
    "info_nce, own negatives only": (
        lambda f, t: f.info_nce(t.a, t.b, negatives=t.negatives, in_batch=False, logit_scale=t.scale),
        "a b negatives scale",
    ),
    "info_nce, labels": (
        lambda f, t: f.info_nce(
            t.a, torch.cat((t.b, t.c)), labels=torch.cat((t.label, t.label * 7 - 3)), logit_scale=t.scale
        ),
        "a b c scale",
    ),
    "info_nce, weights": (
        lambda f, t: f.info_nce(t.a, t.b, sample_weight=t.weight, logit_scale=t.scale),
        "a b weight scale",
    ),
    "info_nce, hard negatives": (
        lambda f, t: f.info_nce(t.a, torch.cat((t.b, t.c)), hard_negative_beta=0.7, logit_scale=t.scale),
        "a b c scale",
    ),
    "info_nce, hard negatives, labels": (
        lambda f, t: f.info_nce(t.a, t.b, labels=t.label, hard_negative_beta=0.7, logit_scale=t.scale),
        "a b scale",
    ),
    "info_nce, margin": (
        lambda f, t: f.info_nce(t.a, t.b, false_negative_margin=0.1, logit_scale=t.scale),
        "a b scale",
    ),
    "clip": (lambda f, t: f.clip(t.a, t.b, logit_scale=t.scale), "a b scale"),
    "clip, one tower frozen": (lambda f, t: f.clip(t.a, t.b, logit_scale=t.scale), "b"),
    "clip, sharp": (lambda f, t: f.clip(t.a, t.a + 0.01 * t.b, logit_scale=100.0), "a b"),
    "siglip": (
        lambda f, t: f.siglip(t.a, t.b, logit_scale=t.scale, logit_bias=t.bias),
        "a b scale bias",
    ),
    "siglip, one tower frozen": (
        lambda f, t: f.siglip(t.a, t.b, logit_scale=t.scale, logit_bias=t.bias, normalize=False),
        "a",
    ),
    "nt_xent": (lambda f, t: f.nt_xent(t.a, t.b, temperature=t.temperature), "a b temperature"),
    "supcon": (lambda f, t: f.supcon(t.a, t.label, temperature=t.temperature), "a temperature"),
    "supcon, inner products": (lambda f, t: f.supcon(t.a, t.label, normalize=False, temperature=2.0), "a"),
    "supcon, two views": (
        lambda f, t: f.supcon(torch.cat((t.a, t.b)), torch.cat((t.sample, t.sample))),
        "a b",
    ),
    "supcon, no positives": (lambda f, t: f.supcon(t.a, t.sample, temperature=t.temperature), "a"),
    "supcon in": (
        lambda f, t: f.supcon(t.a, t.label, variant="in", temperature=t.temperature),
        "a temperature",
    ),
    "supcon, several labels": (
        lambda f, t: f.supcon(t.a, t.tags, temperature=t.temperature),
        "a temperature",
    ),
    "supcon in, several labels": (
        lambda f, t: f.supcon(t.a, t.tags, variant="in", temperature=t.temperature),
        "a temperature",
    ),
    "ranking": (
        lambda f, t: f.multiple_negatives_ranking(t.a, torch.cat((t.b, t.c)), logit_scale=t.scale),
        "a b c scale",
    ),
    "ranking, all directions": (
        lambda f, t: f.multiple_negatives_ranking(
            t.a, torch.cat((t.b, t.c)), logit_scale=t.scale, directions=DIRECTIONS
        ),
        "a b c scale",
    ),
    "ranking, one softmax a direction": (
        lambda f, t: f.multiple_negatives_ranking(
            t.a, t.b, logit_scale=t.scale, directions=DIRECTIONS[::2], partition_mode="per_direction"
        ),
        "a b scale",
    ),
    **{
        f"ranking, {mode} hard": (
            lambda f, t, mode=mode: f.multiple_negatives_ranking(
                t.a, torch.cat((t.b, t.c)), logit_scale=t.scale, hardness_mode=mode, hardness_strength=3.0
            ),
            "a b c scale",
        )
        for mode in HARDNESS
    },
}
LOSSES = ("clip", "info_nce", "multiple_negatives_ranking", "nt_xent", "siglip", "supcon")
NO_RING = {"multiple_negatives_ranking"}
GATHER_ONLY = {"info_nce, margin", *(case for case in CASES if case.startswith("ranking"))}
TWO_VIEWS = {"nt_xent", "supcon, two views"}  # 2 N rows, the first views first


def functions(module, **options):
    without_mode = {name: value for name, value in options.items() if name != "mode"}
    return types.SimpleNamespace(
        **{
            name: functools.partial(getattr(module, name), **(without_mode if name in NO_RING else options))
            for name in LOSSES
        }
    )


class Rank:
    """This process in a group: its share of the rows."""

    def __init__(self, group, counts, place):
        self.group, self.counts, self.place, self.world = group, counts, place, len(counts)
        self.rows = slice(sum(counts[:place]), sum(counts[: place + 1]))

    def share(self, x):
        return x[self.rows] if x.dim() else x

    def share_of_all(self, tensors):
        return {name: self.share(x) for name, x in tensors.items()}

    def share_of_losses(self, x, views):
        return torch.cat([part[self.rows] for part in x.chunk(views)])


def evaluate(case, losses_, tensors, upstream=None):
    call, names = CASES[case]
    leaves = {name: tensors[name].clone().requires_grad_() for name in names.split()}
    loss = call(losses_, types.SimpleNamespace(**{**tensors, **leaves}))
    upstream = torch.ones_like(loss) if upstream is None else upstream
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


def close(got, truth, dtype):
    """As near to float64 as losses of one process have to be."""
    assert got.dtype == dtype
    assert got.shape == truth.shape
    largest = truth.abs().max().item() if truth.numel() else 0.0
    rtol, atol = (1e-9, 1e-11) if dtype == torch.float64 else (2e-4, 2e-5)
    torch.testing.assert_close(got.double(), truth, rtol=rtol, atol=atol * (1 + largest))


def equal(got, expected):
    assert got == expected, (got, expected)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# The checks yield comparisons, which are made when the check has ended: a rank whose figures are wrong takes
# part in all exchanges, or the others would wait for it.


def is_the_whole_batch(rank, mode, case, dtype, reduction):
    total = sum(rank.counts)
    whole = problem(total, dtype)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in whole.items()}
    views = 2 if case in TWO_VIEWS else 1
    weights = torch.linspace(0.5, 2.0, views * total).double() if reduction == "none" else None
    truth, gradients = evaluate(case, functions(F, reduction=reduction), wide, weights)
    if weights is not None:
        truth, weights = (rank.share_of_losses(x, views) for x in (truth, weights))
        weights = weights.to(dtype)
    across = functions(D, reduction=reduction, mode=mode, group=rank.group)
    loss, found = evaluate(case, across, rank.share_of_all(whole), weights)
    yield close, loss, truth, dtype
    # Every rank has the whole batch's loss, or its own rows': the sum over ranks is that loss `times`.
    times = rank.world if reduction != "none" else 1
    for name, gradient in found.items():
        expected = gradients[name] * times
        yield close, gradient, rank.share(expected) if expected.dim() else expected / rank.world, dtype


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(FEATURES, 5), torch.nn.Linear(FEATURES, 5)
        self.scale = torch.nn.Parameter(torch.tensor(1.2))

    def forward(self, image, text):
        return self.image(image), self.text(text), self.scale.exp()


def training_step(rank, mode):
    """DistributedDataParallel's parameters get the gradients that one process computes."""
    whole = problem(sum(rank.counts), torch.float64)
    loss = losses.ClipLoss(distributed=mode, group=rank.group)
    model = torch.nn.parallel.DistributedDataParallel(Towers().double(), process_group=rank.group)
    loss(*model(rank.share(whole["a"]), rank.share(whole["b"]))).backward()
    alone = Towers().double()
    losses.ClipLoss()(*alone(whole["a"], whole["b"])).backward()
    for got, truth in zip(model.parameters(), alone.parameters(), strict=True):
        yield close, got.grad, truth.grad, torch.float64


def modules(rank, mode):
    t = types.SimpleNamespace(**rank.share_of_all(problem(sum(rank.counts), torch.float32)))
    f = functions(D, mode=mode, group=rank.group)
    own = {"distributed": mode, "group": rank.group}
    yield same, losses.InfoNCELoss(**own)(t.a, t.b), f.info_nce(t.a, t.b)
    yield same, losses.ClipLoss(**own)(t.a, t.b, t.scale), f.clip(t.a, t.b, logit_scale=t.scale)
    siglip = f.siglip(t.a, t.b, logit_scale=t.scale, logit_bias=t.bias, normalize=False)
    yield same, losses.SigLipLoss(normalize=False, **own)(t.a, t.b, t.scale, t.bias), siglip
    nt_xent = f.nt_xent(t.a, t.b, reduction="sum")
    yield same, losses.NTXentLoss(reduction="sum", **own)(t.a, t.b), nt_xent
    yield same, losses.SupConLoss(variant="in", **own)(t.a, t.label), f.supcon(t.a, t.label, variant="in")


def half_precision(rank, mode):
    """Scores are never rounded; the slopes of a bfloat16 product are, once, to 2^-9 of themselves."""

    def near(got, whole, dtype):
        assert got.dtype == dtype
        bound = whole.abs().max().item() * 2**-8
        torch.testing.assert_close(got.float(), rank.share(whole), rtol=0.016, atol=bound)

    for dtype in (torch.bfloat16, torch.float16):
        whole = problem(sum(rank.counts), dtype)
        exact = {name: x.float() if x.is_floating_point() else x for name, x in whole.items()}
        for case in ("clip", "siglip", "nt_xent", "supcon"):
            truth, gradients = evaluate(case, functions(F), exact)
            across = functions(D, mode=mode, group=rank.group)
            loss, found = evaluate(case, across, rank.share_of_all(whole))
            yield functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5), loss, truth
            for name, gradient in found.items():
                expected = gradients[name] * (rank.world if gradients[name].dim() else 1)
                yield near, gradient, expected, dtype


def without_gradients(rank, mode):
    whole = problem(sum(rank.counts), torch.float32)
    own = types.SimpleNamespace(**rank.share_of_all(whole))
    own.a.requires_grad_()
    for case in ("clip", "siglip", "supcon"):
        with torch.no_grad():
            loss = CASES[case][0](functions(D, mode=mode, group=rank.group), own)
        yield equal, loss.requires_grad, False
        truth = CASES[case][0](functions(F), types.SimpleNamespace(**whole))
        yield close, loss, truth.double(), torch.float32


def autocast(rank, mode):
    """A loss and its gradients are computed in full precision wherever they stand."""
    own = rank.share_of_all(problem(sum(rank.counts), torch.float32))
    across = functions(D, mode=mode, group=rank.group)
    for case in CASES:
        if mode == "ring" and case in GATHER_ONLY:
            continue
        expected = evaluate(case, across, own)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = evaluate(case, across, own)
        yield same, got[0], expected[0]
        if rank.world > 1:  # the functions of one process have tests of their own
            yield same, got[1], expected[1]


def nearly_solved(rank, mode):
    """Losses that are nearly 0 keep their digits, and their gradients, wherever the one positive is."""
    total = sum(rank.counts)
    generator = torch.Generator().manual_seed(5)
    pair = torch.arange(total) // 2
    z = torch.eye(FEATURES)[pair] + 0.01 * torch.randn(total, FEATURES, generator=generator)
    tags = torch.nn.functional.one_hot(pair, FEATURES)
    several = tags.clone()
    several[:3, 5] = 1  # rows with several positives among the others

    def near(got, truth):
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=0)

    def near_gradient(got, truth):
        bound = 1e-4 * truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=bound)

    for labels in (pair, tags, torch.cat((tags, tags), 1), several):
        for reduction in ("none", "mean"):
            # losses of about 1e-8, less than the rounding of logits that are 20
            options = {"temperature": 0.05, "reduction": reduction}
            wide = z.double().requires_grad_()
            truth = F.supcon(wide, labels, **options)
            (slope,) = torch.autograd.grad(truth.sum(), wide)
            own = rank.share(z).clone().requires_grad_()
            got = D.supcon(own, rank.share(labels), mode=mode, group=rank.group, **options)
            (found,) = torch.autograd.grad(got.sum(), own)
            yield near, got.detach(), rank.share(truth.detach())
            times = 1 if reduction == "none" else rank.world
            yield near_gradient, found, rank.share(slope * times)


def second_derivatives(rank, mode):
    """Of what gather does; the ring says that it has none."""
    if rank.world == 1:
        return

    def penalty(losses_, t, loss):
        a = t["a"].clone().requires_grad_()
        loss = getattr(losses_, loss)(a, t["b"], logit_scale=t["scale"])
        (slope,) = torch.autograd.grad(loss, a, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), a)[0]

    def slope(losses_, t, loss, create_graph):
        a = t["a"].clone().requires_grad_()
        torch.autograd.grad(getattr(losses_, loss)(a, t["b"]), a, create_graph=create_graph)

    whole = problem(sum(rank.counts), torch.float64)
    own = rank.share_of_all(whole)
    across = functions(D, mode=mode, group=rank.group)
    if mode == "ring":
        says = "mode='ring' has no second derivatives (create_graph=True); mode='gather' has"
        for loss in ("clip", "siglip"):
            yield equal, complaint(penalty, across, own, loss), says
            yield contains, complaint(slope, across, own, loss, rank.place == 0), says
        return
    for loss in ("info_nce", "clip", "siglip"):
        # The slopes are `world` times those of one loss, and of their squares there are as many as ranks.
        truth = penalty(functions(F), whole, loss) * rank.world**2
        yield close, penalty(across, own, loss), rank.share(truth), torch.float64


class LargestMatrix(TorchDispatchMode):
    rows = 0

    def __torch_dispatch__(self, function, types_, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.dim() == 2:
                self.rows = max(self.rows, x.shape[0])
        return out


def memory(rank, mode):
    """The ring holds one rank's keys at a time, gather all of them."""
    if rank.world < 3:
        return
    t = rank.share_of_all(problem(sum(rank.counts), torch.float32))
    most = max(rank.counts)
    for case in ("clip", "siglip", "supcon", "supcon in"):
        with LargestMatrix() as largest:
            evaluate(case, functions(D, mode=mode, group=rank.group), t)
        yield equal, (case, largest.rows), (case, most if mode == "ring" else rank.world * most)


def complaint(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ThawkitError as error:
        return str(error)
    return "nothing was raised"


def contains(said, *parts):
    assert all(part in said for part in parts), (said, parts)


def mistakes(rank, mode):
    """A mistake of one rank raises on all, and what comes after it works."""
    if rank.world == 1:
        return
    last = rank.place == rank.world - 1
    options = {"mode": mode, "group": rank.group}
    who = f"rank {rank.world - 1}: "
    x = torch.ones(3, 4)
    said = complaint(D.clip, x, torch.ones(2, 4) if last else x, **options)
    yield equal, said, ("" if last else who) + "text must have the shape of image, (3, 4), got (2, 4)"

    wide = torch.ones(3, 5)
    said = complaint(D.clip, *((wide, wide) if last else (x, x)), **options)
    start = "all ranks must call the same loss with arguments of one kind, got rank 0: clip("
    yield contains, said, start + "image=float32[rows, 4]", who + "clip(image=float32[rows, 5]"

    said = complaint(D.nt_xent if last else D.clip, x, x, **options)
    yield contains, said, who + "nt_xent("
    said = complaint(D.clip, x.clone().requires_grad_(last), x, **options)
    yield contains, said, who + "clip(image=float32[rows, 4, gradient]"
    said = complaint(D.siglip, x, x, reduction="sum" if last else "mean", **options)
    yield contains, said, "reduction='mean'", "reduction='sum'"
    said = complaint(D.clip, x[:0], x[:0], **options)
    yield equal, said, "image has no rows, and reduction='mean' divides by their number"
    said = complaint(D.info_nce, x, x, in_batch=False, **options)
    yield equal, said, "negatives must be given where in_batch is false, got None"
    documents = torch.ones(6 if last else 3, 4)
    said = complaint(D.multiple_negatives_ranking, x, documents, group=rank.group)
    yield contains, said, "documents must have as many columns on all ranks"
    if mode == "ring":
        said = complaint(D.info_nce, x, x, false_negative_margin=0.1, **options)
        yield equal, said, "false_negative_margin needs mode='gather', got mode='ring'"
    yield from is_the_whole_batch(rank, mode, "clip", torch.float32, "mean")


def mistakes_before_the_meeting(rank, mode):
    """What a module finds wrong with one rank's arguments, before it calls a function, raises on all."""
    if rank.world == 1:
        return
    last = rank.place == rank.world - 1
    own = {"distributed": mode, "group": rank.group}
    x = torch.ones(3, 4)
    for wrong in (0, torch.tensor(-1.0), "warm"):
        for made in (losses.InfoNCELoss(**own), losses.NTXentLoss(**own)):
            made.temperature = wrong if last else 0.5
            yield contains, complaint(made, x, x), "temperature must be"
    bounded = losses.ClipLoss(max_logit_scale=50.0, **own)
    for wrong in (torch.tensor(torch.nan), torch.ones(2), "steep"):
        said = complaint(bounded, x, x, wrong if last else 10.0)
        yield contains, said, "logit_scale must"
    said = complaint(losses.SigLipLoss(max_logit_scale=50.0, **own), x, x, None if last else 10.0, -10.0)
    yield contains, said, "logit_scale must be a number, got NoneType"
    made = losses.SupConLoss(**own)
    made.distributed = "round" if last else mode
    yield contains, complaint(made, x, torch.ones(3).long()), "mode must be one of", "got 'round'"
    yield from is_the_whole_batch(rank, mode, "clip", torch.float32, "mean")


class Unprintable:
    def __repr__(self):
        raise ValueError("no word for it")


def switches(rank, mode):
    """What is not True or False is refused by name, and what cannot be told to others too."""
    if rank.world == 1:
        return
    last = rank.place == rank.world - 1
    x, labels = torch.ones(3, 4), torch.ones(3).long()
    options = {"mode": mode, "group": rank.group}
    for loss in LOSSES:
        without_mode = {"group": rank.group} if loss in NO_RING else options
        arguments = (x, labels) if loss == "supcon" else (x, x)
        for value in ("no", 1, None):
            said = complaint(getattr(D, loss), *arguments, normalize=value if last else True, **without_mode)
            yield contains, said, f"normalize must be True or False, got {value!r}"
    said = complaint(D.info_nce, x, x, in_batch="no" if last else True, **options)
    yield contains, said, "in_batch must be True or False, got 'no'"
    said = complaint(D.clip, x, x, reduction=Unprintable() if last else "mean", **options)
    yield contains, said, "no word for it"


def numbers(rank, mode):
    """The numbers of all ranks are one: the values count, not how they are written."""
    if rank.world == 1:
        return
    last = rank.place == rank.world - 1
    options = {"mode": mode, "group": rank.group}
    who = f"rank {rank.world - 1}: "
    x = torch.eye(3, 4)
    for kind in (float, torch.tensor, lambda value: torch.tensor(value, requires_grad=True)):
        said = complaint(D.clip, x, x, logit_scale=kind(5.5 if last else 5.0), **options)
        yield contains, said, "logit_scale must be the same on all ranks, got rank 0: 5; ", who + "5.5"
        said = complaint(D.siglip, x, x, logit_bias=kind(-1.0 if last else 0.0), **options)
        yield contains, said, "logit_bias must be the same on all ranks", who + "-1"
        said = complaint(D.nt_xent, x, x, temperature=kind(0.2 if last else 0.1), **options)
        yield contains, said, "temperature must be the same on all ranks", who + "0.2"
    said = complaint(D.info_nce, x, x, hard_negative_beta=0.2 if last else 0.1, **options)
    yield contains, said, "hard_negative_beta must be the same on all ranks"

    expected = D.clip(x, x, logit_scale=5.0, **options)
    for other in (5, torch.tensor(5.0), torch.tensor([5.0]), torch.tensor(5.0 + 1e-6)):
        got = D.clip(x, x, logit_scale=other if last else 5.0, **options)
        yield functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6), got, expected
    expected = D.info_nce(x, x, hard_negative_beta=1.0, **options)
    yield same, D.info_nce(x, x, hard_negative_beta=True if last else 1, **options), expected
    expected = D.multiple_negatives_ranking(x, x, directions=DIRECTIONS, group=rank.group)
    directions = list(DIRECTIONS) if last else DIRECTIONS
    yield same, D.multiple_negatives_ranking(x, x, directions=directions, group=rank.group), expected
    labels = torch.arange(3)
    expected = D.supcon(x, labels // 2, **options)
    yield same, D.supcon(x, labels.int() // 2 if last else labels // 2, **options), expected


def negatives_of_other_number(rank, mode):
    """Negatives of one's own rows stay on their rank, which may have more or fewer than the others."""
    if rank.world == 1:
        return
    whole = problem(sum(rank.counts), torch.float64)
    own = types.SimpleNamespace(**rank.share_of_all(whole))
    options = {"logit_scale": 4.0, "reduction": "none"}
    for in_batch in (True, False):
        leaves = [x.clone().requires_grad_() for x in (own.a, own.b, own.negatives[:, : rank.place])]
        got = D.info_nce(
            *leaves[:2], negatives=leaves[2], in_batch=in_batch, mode=mode, group=rank.group, **options
        )
        gradients = torch.autograd.grad(got.sum(), leaves)
        inputs = [whole[name].clone().requires_grad_() for name in ("a", "b", "negatives")]
        truth = [
            F.info_nce(*inputs[:2], negatives=inputs[2][:, :count], in_batch=in_batch, **options)
            for count in range(rank.world)
        ]
        starts = [sum(rank.counts[:place]) for place in range(rank.world + 1)]
        everyone = [loss[i:j] for loss, i, j in zip(truth, starts[:-1], starts[1:], strict=True)]
        yield close, got, rank.share(truth[rank.place]).detach(), torch.float64
        for g, expected in zip(
            gradients, torch.autograd.grad(torch.cat(everyone).sum(), inputs), strict=True
        ):
            expected = rank.share(expected)
            yield close, g, expected[:, : rank.place] if g.dim() == 3 else expected, torch.float64


def transforms(rank, mode):
    """There is no form under torch.func, which all ranks hear of."""
    if rank.world == 1:
        return
    x = torch.eye(3, 4)
    options = {"mode": mode, "group": rank.group}
    own = {"distributed": mode, "group": rank.group}
    for call in (lambda a: D.clip(a, x, **options), lambda a: losses.InfoNCELoss(**own)(a, x)):
        yield contains, complaint(torch.func.grad(call), x), "torch.func"
        yield contains, complaint(torch.func.grad(call) if rank.place == 0 else call, x), "torch.func"
    says = complaint(torch.func.vmap(lambda a: D.supcon(a, torch.arange(3), **options)), x[None])
    yield contains, says, "torch.func"


def compiled(rank, mode):
    """torch.compile leaves the exchange out of its graphs, and says so where it may not."""
    if len(rank.counts) != 2:  # once is enough of what takes seconds
        return
    t = problem(sum(rank.counts), torch.float32)
    t = {name: rank.share(x) for name, x in t.items()}
    own = {"distributed": mode, "group": rank.group}
    scaled = losses.ClipLoss(max_logit_scale=3.0, **own)
    learned = losses.InfoNCELoss(torch.nn.Parameter(torch.tensor(0.2)), **own)

    def function(a, b, scale):
        return 3 * D.siglip(2 * a, b, logit_scale=scale, mode=mode, group=rank.group) + a.sum()

    def module(a, b, scale):
        return scaled(2 * a, b, scale) + learned(a, b) * scale

    for call in (function, module):
        found = []
        for form in (call, torch.compile(call, backend="eager")):
            leaves = [t[name].clone().requires_grad_() for name in ("a", "b", "scale")]
            loss = form(*leaves)
            found.append((loss.detach(), torch.autograd.grad(loss, leaves)))
        yield same, found[1], found[0]
        try:
            torch.compile(call, backend="eager", fullgraph=True)(t["a"], t["b"], t["scale"])
            said = "nothing was raised"
        except Exception as error:
            said = str(error)
        yield contains, said, "ranks exchange what no graph holds"


CHECKS = {
    check.__name__: check
    for check in (
        training_step,
        modules,
        half_precision,
        without_gradients,
        autocast,
        nearly_solved,
        second_derivatives,
        memory,
        mistakes,
        mistakes_before_the_meeting,
        switches,
        numbers,
        negatives_of_other_number,
        transforms,
        compiled,
    )
}


def combinations():
    """Yield the name of every check, its group and mode, and what to call with a rank."""
    for group in GROUPS:
        for mode in MODES:
            for case in CASES:
                if mode == "ring" and case in GATHER_ONLY:
                    continue
                for dtype, reduction in (
                    (torch.float64, "mean"),
                    (torch.float32, "mean"),
                    (torch.float32, "none"),
                    (torch.float32, "sum"),
                ):
                    call = functools.partial(
                        is_the_whole_batch, mode=mode, case=case, dtype=dtype, reduction=reduction
                    )
                    yield f"{group}, {mode}: {case}, {reduction} of {dtype}", group, mode, call
            for name, check in CHECKS.items():
                yield f"{group}, {mode}: {name}", group, mode, functools.partial(check, mode=mode)


def outsider(group):
    said = complaint(D.clip, torch.ones(3, 4), torch.ones(3, 4), group=group)
    yield contains, said, "group must contain this process, rank"


def dead_rank():
    """Ranks do not wait for one that is no more."""
    if dist.get_rank() == PROCESSES - 1:
        return
    said = "nothing was raised"
    try:
        D.clip(torch.ones(3, 4), torch.ones(3, 4))
    except RuntimeError as error:
        said = str(error)
    yield contains, said, "peer"


def main(place: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=place,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}

    def record(name, check, *arguments):
        try:
            for compare, *values in list(check(*arguments)):
                compare(*values)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()

    made = {
        name: None if len(members) == world else dist.new_group(members)
        for name, (members, _) in GROUPS.items()
    }
    for name, group, _, check in combinations():
        members, counts = GROUPS[group]
        if place in members:
            record(name, check, Rank(made[group], counts, members.index(place)))
    if place in (0, 1):
        record("outsider", outsider, made["1"])
    record("dead rank", dead_rank)
    (folder / f"{place}.json").write_text(json.dumps(results))
    os._exit(0)  # without a word to the others, and without waiting for them


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
