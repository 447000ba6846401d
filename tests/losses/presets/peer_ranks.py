"""One rank of the tests of stand-ins across ranks: the library's loss and ours, of the same rows.

``python peer_ranks.py RANK WORLD FOLDER`` writes ``FOLDER/RANK.json``: for each check the traceback of what
failed, nothing, or ``missing:`` and the library that is not installed.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import itertools
import json
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

from thawkit.errors import ThawkitError
from thawkit.losses.presets import lightly, open_clip, sentence_transformers

ROWS, FEATURES = 5, 8
PROCESSES = 4


def columns(count, dtype, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    first = torch.randn(ROWS, FEATURES, generator=generator)
    others = (first + torch.randn(ROWS, FEATURES, generator=generator) for _ in range(count - 1))
    return [normalize(x, dim=1).to(dtype) for x in (first, *others)]


def evaluate(loss, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_same(ours, theirs, inputs):
    """Values and gradients; of numbers that all ranks hold alike ours are averages over the ranks at once."""
    wide = [x.double() for x in inputs]
    truth, gradients = evaluate(theirs, wide)
    comparisons = []
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        value, found = evaluate(ours, [x.to(dtype) for x in inputs])
        for got, expected in zip((value, *found), (truth, *gradients), strict=True):
            if got is not value and not got.dim():
                dist.all_reduce(expected := expected.clone())
                expected /= PROCESSES
            comparisons.append((got.double(), expected, tolerance))
    for got, expected, tolerance in comparisons:  # when all exchanges are over
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def clip(theirs, local, with_grad, bias):
    numbers = [torch.tensor(9.0), *([torch.tensor(-2.0)] if bias else [])]
    losses = [
        module.ClipLoss(local, with_grad, rank=dist.get_rank(), world_size=PROCESSES)
        for module in (open_clip, theirs)
    ]
    assert_same(*losses, [*columns(2, torch.float32), *numbers])


def siglip(theirs, implementation):
    losses = [
        module.SigLipLoss(rank=dist.get_rank(), world_size=PROCESSES, dist_impl=implementation)
        for module in (open_clip, theirs)
    ]
    assert_same(*losses, [*columns(2, torch.float32), torch.tensor(9.0), torch.tensor(-6.0)])


def nt_xent(theirs):
    losses = [module.NTXentLoss(0.3, gather_distributed=True) for module in (lightly, theirs)]
    assert_same(*losses, columns(2, torch.float32))


def memory_bank(theirs):
    losses = []
    for module in (lightly, theirs):
        torch.manual_seed(3)
        losses.append(module.NTXentLoss(0.3, (47, FEATURES), gather_distributed=True))
    found = []
    for step in range(5):
        inputs = columns(2, torch.float32, step)
        found.append([evaluate(loss, inputs) for loss in losses])
    for ours, peer in found:
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(*(loss.memory_bank.bank for loss in losses), rtol=0, atol=0)


class Rows(nn.Module):
    def forward(self, features):
        return {"sentence_embedding": features["rows"]}


DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
RANKINGS = {
    "default": {},
    "dot_score": {"similarity_fct": "dot_score"},
    "all directions": {"directions": DIRECTIONS},
    "one softmax a direction": {"directions": DIRECTIONS[::2], "partition_mode": "per_direction"},
    **{
        f"{mode} hard": {"hardness_mode": mode, "hardness_strength": 3.0}
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
    },
}


def ranking(theirs, name, count):
    from sentence_transformers.util import dot_score

    options = RANKINGS[name]

    def of(loss, **more):
        def function(*embeddings):
            scale = {} if embeddings[-1].dim() else {"scale": embeddings[-1]}
            rows = [x for x in embeddings if x.dim()]
            made = loss(Rows(), gather_across_devices=True, **scale, **{**options, **more})
            return made.compute_loss_from_embeddings(rows, None)

        return function

    more = {"similarity_fct": dot_score} if "similarity_fct" in options else {}
    # beside query_to_query theirs has no gradient of the scale: see test_sentence_transformers.py
    scale = [] if name == "all directions" else [torch.tensor(6.0)]
    losses = (
        of(sentence_transformers.MultipleNegativesRankingLoss),
        of(theirs.MultipleNegativesRankingLoss, **more),
    )
    assert_same(*losses, [*columns(count, torch.float32), *scale])


def place():
    """A wrong rank or number of processes is found before anything is exchanged."""
    inputs = *columns(2, torch.float32), 1.0
    for loss in (
        open_clip.ClipLoss(rank=dist.get_rank(), world_size=PROCESSES + 1),
        functools.partial(open_clip.SigLipLoss(world_size=PROCESSES + 1), logit_bias=0.0),
    ):
        with pytest.raises(ThawkitError, match="rank and world_size must be those of the default process"):
            loss(*inputs)


def mistakes():
    """What a stand-in finds wrong on one rank before it calls a function raises on all of them."""
    bad = dist.get_rank() == PROCESSES - 1
    first, second = columns(2, torch.float32)
    options = {"rank": dist.get_rank(), "world_size": PROCESSES + 2 * bad}
    for loss in (open_clip.ClipLoss(**options), open_clip.SigLipLoss(**options)):
        with pytest.raises(ThawkitError, match="rank and world_size must be those of the default process"):
            loss(first, second, 1.0, 0.0)
    options["world_size"] = PROCESSES
    for local, with_grad in itertools.product((False, True), repeat=2):
        loss = open_clip.ClipLoss(local, with_grad, **options)
        with pytest.raises(ThawkitError, match="logit_bias must be finite, got nan"):
            loss(first, second, 1.0, torch.nan if bad else 0.0)
        with pytest.raises(ThawkitError, match="text_features must be a tensor, got NoneType"):
            loss(first, None if bad else second, 1.0)

    learned = torch.nn.Parameter(torch.tensor(-1.0 if bad else 0.5))
    for size in (0, (9, FEATURES)):
        loss = lightly.NTXentLoss(gather_distributed=True, memory_bank_size=size)
        loss.temperature = learned
        with pytest.raises(ThawkitError, match=r"temperature must be positive and finite, got -1\.0"):
            loss(first.clone().requires_grad_(), second)
    bank = lightly.NTXentLoss(gather_distributed=True, memory_bank_size=(9, FEATURES))
    narrow = FEATURES - 1 if bad else FEATURES
    with pytest.raises(ThawkitError, match=f"features of the memory bank, {FEATURES}, got {FEATURES - 1}"):
        bank(first[:, :narrow].clone().requires_grad_(), second[:, :narrow])
    if bad:  # without gradients nothing goes into the bank, and a rank is alone with its mistake
        with torch.no_grad(), pytest.raises(ThawkitError, match="out1 must have the shape of out0"):
            bank(first, second[:3])

    ranking = sentence_transformers.MultipleNegativesRankingLoss(Rows(), gather_across_devices=True)
    for wrong, says in (
        ([first], "embeddings must be of two columns or more, got 1"),
        ([first, second[:3]], r"embeddings\[1\] must have the shape of embeddings\[0\]"),
        ([first, None], "AttributeError: 'NoneType' object has no attribute 'shape'"),
    ):
        with pytest.raises(ThawkitError, match=says):
            ranking.compute_loss_from_embeddings(wrong if bad else [first, second])


def uneven(*_):
    """A rank without rows, which the libraries do not allow for, has loss 0 and takes part."""
    first, second = (x[: dist.get_rank()] for x in columns(2, torch.float32))
    losses = (
        functools.partial(
            open_clip.ClipLoss(True, True, rank=dist.get_rank(), world_size=PROCESSES), logit_scale=3.0
        ),
        lightly.NTXentLoss(gather_distributed=True),
        lightly.NTXentLoss(gather_distributed=True, memory_bank_size=(9, FEATURES)),
        lambda *x: sentence_transformers.MultipleNegativesRankingLoss(
            Rows(), gather_across_devices=True
        ).compute_loss_from_embeddings(list(x)),
    )
    found = [evaluate(loss, (first, second)) for loss in losses]
    for value, gradients in found:
        assert torch.isfinite(value)
        assert (value == 0) == (not len(first))
        assert all(g.shape == first.shape and torch.isfinite(g).all() for g in gradients)


LIBRARIES = {
    "open_clip": "open_clip.loss",
    "lightly": "lightly.loss",
    "sentence_transformers": "sentence_transformers.sentence_transformer.losses",
}
CHECKS = {
    **{
        f"open_clip: clip, local_loss={local}, gather_with_grad={grad}{', bias' * bias}": functools.partial(
            clip, local=local, with_grad=grad, bias=bias
        )
        for local, grad, bias in itertools.product((False, True), repeat=3)
    },
    **{
        f"open_clip: siglip, {implementation}": functools.partial(siglip, implementation=implementation)
        for implementation in ("bidir", "shift", "reduce", "gather")
    },
    "lightly: nt_xent": nt_xent,
    "lightly: memory bank": memory_bank,
    **{
        f"sentence_transformers: {name}, {count} columns": functools.partial(ranking, name=name, count=count)
        for name in RANKINGS
        for count in (2, 3)
    },
    "place": place,
    "mistakes": mistakes,
    "uneven": uneven,
}


def check(name):
    library, separator, _ = name.partition(":")
    if not separator:
        return CHECKS[name]()
    try:
        module = importlib.import_module(LIBRARIES[library])
    except ImportError:
        return f"missing: {library}"
    return CHECKS[name](module)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )
    results = {}
    for name in CHECKS:
        try:
            results[name] = check(name) or ""
        except Exception:
            results[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
