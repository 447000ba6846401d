"""csrc/cuda/pairwise.cu: the epilogue of InfoNCE on a panel of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.ops.pairwise import cuda

from .registry import Run, check, close, poisoned, same, virtual

# rows, keys, first
PANELS = [
    (1, 1, 0),
    (1, 2, 1),
    (3, 5, 2),
    (5, 33, 0),
    (2, 255, 100),
    (3, 256, 7),
    (4, 257, 250),
    (3, 1000, 991),
]


def truth(scores: Tensor, first: int, scale: float, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, slopes and the sums that make the gradient of the scale, in float64."""
    wide = scores.double()
    logits = scale * wide
    own = torch.arange(len(scores)) + first
    loss = logits.logsumexp(1) - logits[torch.arange(len(scores)), own]
    slopes = logits.softmax(1)
    slopes[torch.arange(len(scores)), own] -= 1
    slopes = weight.double().unsqueeze(1) * slopes
    return loss, slopes, (slopes * wide).sum(1)


def epilogue(
    run: Run,
    scores: Tensor,
    first: int,
    scale: float,
    row_weight: Tensor | None,
    gradient: bool,
    dscale: bool,
) -> tuple[Tensor, Tensor]:
    loss = poisoned(len(scores))
    sums = poisoned(len(scores)) if dscale else loss.new_empty(0)
    with run(seed=scores.shape[1]):
        cuda.epilogue(scores, first, row_weight, 0.3, torch.tensor(scale), loss, sums, gradient)
    return loss, sums


@check("info_nce_panel", panel=PANELS, scale=[1.0, -2.0, 30.0], weighted=[False, True])
def losses_and_slopes(run: Run, panel: tuple, scale: float, weighted: bool) -> None:
    rows, keys, first = panel
    given = torch.randn(rows, keys)
    row_weight = torch.randn(rows) if weighted else None
    weight = row_weight if weighted else torch.full((rows,), 0.3)
    loss_truth, slopes, sums_truth = truth(given, first, scale, weight)
    for gradient, dscale in ((True, True), (True, False), (False, False)):
        scores = poisoned(rows, keys + 3)  # a stride of its own, and room that nobody may touch
        scores[:, :keys] = given
        loss, sums = epilogue(run, scores[:, :keys], first, scale, row_weight, gradient, dscale)
        close(loss, loss_truth, 2e-6, 2e-6 + 4e-7 * abs(scale))
        close(scores[:, :keys], slopes if gradient else given, 4e-6 * (1 + abs(scale)), 1e-7)
        assert scores[:, keys:].isnan().all()
        if dscale:
            close(sums, sums_truth, 1e-5 * (1 + abs(scale)), 1e-6 * (1 + abs(scale)))


@check("info_nce_panel")
def a_positive_far_above_the_rest(run: Run) -> None:
    """Its slope and its loss, which are tiny, keep their digits."""
    given = torch.randn(4, 300)
    given[torch.arange(4), torch.arange(4)] = torch.tensor([20.0, 40.0, 80.0, 300.0])
    scores = given.clone()
    loss, sums = epilogue(run, scores, 0, 1.0, None, True, True)
    wide = given.double()
    others = wide - wide.diagonal().unsqueeze(1)
    others[torch.arange(4), torch.arange(4)] = -math.inf
    rest = others.logsumexp(1)
    close(loss[:2], torch.log1p(rest[:2].exp()), 2e-5)
    close(loss[2:], torch.zeros(2), 0, 1e-25)
    close(scores.diagonal()[:2], -0.3 * torch.sigmoid(rest[:2]), 2e-5)
    close(sums[:2], truth(given, 0, 1.0, torch.full((4,), 0.3))[2][:2], 1e-4, 1e-12)


@check("info_nce_panel", scale=[300.0, -300.0])
def scores_that_overflow_alone(run: Run, scale: float) -> None:
    given = torch.randn(3, 70) * 10
    scores = given.clone()
    loss, _ = epilogue(run, scores, 5, scale, None, True, True)
    loss_truth, slopes, _ = truth(given, 5, scale, torch.full((3,), 0.3))
    close(loss, loss_truth, 1e-5)
    close(scores, slopes, 3e-3, 1e-6)


@check("info_nce_panel", at=[0, 31, 255, 256, 299])
def nan_spoils_its_row_alone(run: Run, at: int) -> None:
    scores = torch.randn(3, 300)
    scores[1, at] = math.nan
    loss, _ = epilogue(run, scores, 2, 1.0, None, True, True)
    same(loss.isnan(), torch.tensor([False, True, False]))
    assert scores[[0, 2]].isfinite().all()
    assert scores[1].isnan().all()


@check("info_nce_panel")
def keys_that_do_not_count(run: Run) -> None:
    given = torch.randn(2, 300)
    given[:, 50:290] = -math.inf
    scores = given.clone()
    loss, sums = epilogue(run, scores, 1, 2.0, None, True, True)
    finite = torch.cat([given[:, :50], given[:, 290:]], 1)
    loss_truth, slopes, sums_truth = truth(finite, 1, 2.0, torch.full((2,), 0.3))
    close(loss, loss_truth, 2e-6, 2e-6)
    close(torch.cat([scores[:, :50], scores[:, 290:]], 1), slopes, 1e-5, 1e-7)
    assert (scores[:, 50:290] == 0).all()
    close(sums, sums_truth, 1e-5, 1e-5)


@check("info_nce_panel")
def past_two_to_the_31(run: Run) -> None:
    stride = 2**30 + 8
    scores = virtual(3 * stride, torch.float32).view(3, stride)[:, :40]
    given = torch.randn(3, 40)
    scores.copy_(given)
    loss, sums = epilogue(run, scores, 20, 2.0, None, True, True)
    loss_truth, slopes, sums_truth = truth(given, 20, 2.0, torch.full((3,), 0.3))
    close(loss, loss_truth, 2e-6, 2e-6)
    close(scores, slopes, 1e-5, 1e-7)
    close(sums, sums_truth, 3e-5, 3e-6)
