"""csrc/cuda/top_k.cu: the best of groups of columns, and the keys of some groups."""

from __future__ import annotations

import torch
from thawkit.kernels.top_k_scores import LAST, NONE, Scores
from torch import Tensor

from tests.gpu_proof.families.top_k import FAMILY, _decoded, _problem, _ranked
from tests.gpu_proof.triton_checks.family import faults
from tests.gpu_proof.triton_checks.family import poisoned as poisoned_integers
from thawkit.ops.pairwise import cuda_top_k

from .panels import FAR, NOTHING, far
from .registry import Run, check, close, same, virtual

# a warp's threads share a group: none is of more than 128 columns
PROBLEMS = [name for name in FAMILY.problems if "a group of each block" not in name]


def problems_of_triton(run: Run, problem: str) -> None:
    with run(seed=len(problem)):
        compared = FAMILY.problems[problem](cuda_top_k)
    assert not faults(compared), faults(compared)


check("best_of_groups", problem=[p for p in PROBLEMS if not p.startswith("keys")])(problems_of_triton)
check("keys_of_groups", problem=[p for p in PROBLEMS if not p.startswith("best")])(problems_of_triton)


def _given(columns: int, before: int, shifted: bool) -> tuple[Scores, Tensor]:
    """Scores that wide loads may begin at unless something lies before them, and their float64 truth."""
    options, truth = _problem(3, columns, shifted, False, 40, False, 1.0)
    memory = torch.full((before + 3 * (columns + -columns % 4),), torch.nan)
    options["products"] = memory[before:].view(3, -1)[:, :columns].copy_(options["products"])
    if shifted:
        x = options["column_norms"]
        options["column_norms"] = torch.cat([x[:1], x])[1:]
    return Scores(**options), truth


@check("best_of_groups", columns=[1024, 1027, 2056], group=[4, 8, 128], before=[0, 1], shifted=[False, True])
def best_of_any_layout(run: Run, columns: int, group: int, before: int, shifted: bool) -> None:
    scores, truth = _given(columns, before, shifted)
    groups = -(-columns // group)
    memory = poisoned_integers(3, groups + 3, dtype=torch.int64)
    with run(seed=group):
        cuda_top_k.best_of_groups(scores, group, memory[:, :groups])
    values, numbers = _decoded(memory[:, :groups])
    expected = torch.stack([_ranked(part)[0] for part in truth.split(group, 1)], 1)
    same(values.double(), expected)
    same(numbers, torch.arange(groups).expand(3, -1))
    same(memory[:, groups:], torch.full((3, 3), -77))


@check(
    "keys_of_groups", columns=[1024, 1027, 2056], group=[4, 8, 128], before=[0, 1], shifted=[False, True],
    gap=[0, 3, 4],
)  # fmt: skip
def keys_of_any_layout(run: Run, columns: int, group: int, before: int, shifted: bool, gap: int) -> None:
    """Of half of the groups, the last ones first."""
    scores, truth = _given(columns, before, shifted)
    groups = -(-columns // group)
    chosen = torch.arange(groups - 1, groups // 2 - 1, -1)
    given = ((5 << 32) + LAST - chosen).expand(3, -1).contiguous()
    width = len(chosen) * group
    memory = poisoned_integers(3, width + gap, dtype=torch.int64)
    with run(seed=group):
        cuda_top_k.keys_of_groups(scores, group, given, memory[:, :width])
    values, numbers = _decoded(memory[:, :width])
    places = (chosen[:, None] * group + torch.arange(group)).flatten()
    inside = places < columns
    same(values[:, inside].double(), truth[:, places[inside]])
    same(numbers[:, inside], (places[inside] + 40).expand(3, -1))
    assert (memory[:, :width][:, ~inside] == NONE).all()
    same(memory[:, width:], torch.full((3, gap), -77))


@check("best_of_groups")
def past_two_to_the_31_in_products(run: Run) -> None:
    rows = torch.randn(3, 40)
    keys = virtual(3 * FAR, torch.int64).view(3, FAR)[:, :5]
    with run():
        cuda_top_k.best_of_groups(Scores(far(rows), 0), 8, keys)
    close(_decoded(keys)[0], rows.view(3, 5, 8).amax(2), 0)


@check("keys_of_groups")
def past_two_to_the_31_in_keys(run: Run) -> None:
    rows = torch.randn(3, 40)
    chosen, keys = (virtual(3 * FAR, torch.int64).view(3, FAR) for _ in range(2))
    chosen = chosen[:, :1].fill_((5 << 32) + LAST - 2)
    with run():
        cuda_top_k.keys_of_groups(Scores(far(rows), 2**31 - 100), 8, chosen, keys[:, :8])
    values, numbers = _decoded(keys[:, :8])
    same(values, rows[:, 16:24])
    same(numbers, (torch.arange(16, 24) + 2**31 - 100).expand(3, -1))


@check("best_of_groups", "keys_of_groups", shape=NOTHING)
def keys_of_nothing(run: Run, shape: tuple[int, int]) -> None:
    rows, columns = shape
    keys = torch.empty(rows, columns, dtype=torch.int64)
    with run():
        cuda_top_k.best_of_groups(Scores(torch.empty(shape), 0), 8, keys[:, : columns // 8])
        cuda_top_k.keys_of_groups(Scores(torch.empty(shape), 0), 8, None, keys)
        cuda_top_k.keys_of_groups(Scores(torch.randn(3, 40), 0), 8, None, torch.empty(3, 0).long())
