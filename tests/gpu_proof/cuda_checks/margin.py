"""csrc/cuda/margin.cu: distances of a panel's rows, triplets mined of them, contrastive pairs."""

from __future__ import annotations

import dataclasses

import torch
from thawkit.kernels.panel import Panel
from torch import Tensor

from tests.gpu_proof.families.margin import FAMILY, case_of, mined, paired
from thawkit.ops.pairwise import cuda_margin

from .panels import FACTOR, LAYOUTS, far, no_panel, placed, solve, untouched
from .registry import Run, check, close, poisoned, same

# of each kernel: the kinds of Triton's problems, and what it reads or writes in accesses of 16 bytes
KERNELS = {
    "distances_panel": (("special distances", "all, 5x7", "all, cosine"), ("scores", "distances", "norms")),
    "all_triplets_panel": (("all", "special all"), ("distances", "slopes")),
    "semihard_triplets_panel": (("semihard", "special semihard"), ("distances", "number")),
    "hardest_triplet_panel": (("hard", "special hard"), ("scores", "norms", "number")),
    "contrastive_panel": (("contrastive", "special contrastive"), ("scores", "slopes", "norms", "weight")),
}
MARGIN, NEGATIVE_MARGIN = 0.21, 5.3


def problems_of_triton(run: Run, problem: str) -> None:
    solve(run, problem, FAMILY, cuda_margin)


class Problem:
    """A case in memory of its own: where matrices begin, and how far apart their rows are, is given.

    ``misplaced`` names one of them, or of what is known of the columns, that no vector begins.
    """

    def __init__(
        self, kernel: str, layout: tuple[int, int, int, int], misplaced: str = "", classes: int = 0
    ) -> None:
        self.kernel, self.layout, self.misplaced = kernel, layout, misplaced
        rows, columns, *_ = layout
        first = min(1, columns - rows)
        self.case = case_of(cuda_margin, rows, columns, classes or max(3, columns // 8), first=first)
        self.weight = torch.linspace(0.5, 1.5, columns)
        known = self.case.rows
        self.rows = dataclasses.replace(
            known,
            column_norms=self._shifted("norms", known.column_norms),
            number=self._shifted("number", known.number),
        )
        self.memory: list[tuple[Tensor, tuple[int, int, int, int]]] = []
        self.scores = self._placed("scores", self.case.scores)
        self.distances = self._placed("distances", self.case.d[:, self.case.order].float())
        self.slopes = self._placed("slopes", torch.zeros_like(self.scores))

    def _shifted(self, name: str, x: Tensor) -> Tensor:
        return torch.cat([x[:1], x])[1:] if name == self.misplaced else x

    def _placed(self, name: str, x: Tensor) -> Tensor:
        rows, columns, gap, before = self.layout
        before += name == self.misplaced
        view, memory = placed(x, gap, before)
        self.memory.append((memory, (rows, columns, gap, before)))
        return view

    def check(self, run: Run, slopes: bool = True) -> None:
        """Run the kernel, and compare all that it writes; what else it is given stays as it was."""
        rows, columns, *_ = self.layout
        self.loss, self.total, self.within, self.between = (poisoned(rows) for _ in range(4))
        self.active, self.chosen, self.two = (
            torch.full((rows,), -1),
            torch.full((rows, 2), -1),
            poisoned(rows, 2),
        )
        if self.kernel == "distances_panel":
            self.distances.fill_(torch.nan)
        before = {name: getattr(self, name).clone() for name in ("scores", "distances", "slopes")}
        with run(seed=columns):
            self._launch(slopes)
        if self.kernel == "distances_panel":
            close(self.distances, self.case.d[:, self.case.order], 1e-6)
            before.pop("distances")
        else:
            weights = self._compare_losses()
            if slopes:
                self._compare_weights(weights)
            assert slopes or self.total.isnan().all()
            if slopes and self.kernel != "hardest_triplet_panel":
                before.pop("slopes")
        for name, x in before.items():
            same(getattr(self, name), x)
        for memory, layout in self.memory:
            untouched(memory, layout)

    def _here(self) -> slice:
        return slice(self.case.first, self.case.first + self.layout[0])

    def _launch(self, slopes: bool) -> None:
        panel = Panel(
            self.scores, self.slopes if slopes else None, self.case.first, torch.ones(()),
            self.weight[self._here()], FACTOR,
        )  # fmt: skip
        margin, negative_margin = torch.tensor(MARGIN), torch.tensor(NEGATIVE_MARGIN)
        if self.kernel == "distances_panel":
            cuda_margin.distances(panel, self.rows, self.distances)
        elif self.kernel == "contrastive_panel":
            cuda_margin.contrastive_pairs(
                panel, self.rows, margin, negative_margin, self._shifted("weight", self.weight), self.loss,
                self.within, self.between, self.total,
            )  # fmt: skip
        elif self.kernel == "hardest_triplet_panel":
            two = (self.chosen, self.two) if slopes else ()
            cuda_margin.hardest_triplet(panel, self.rows, margin, self.loss, self.active, *two)
        else:
            all_of_them = self.kernel == "all_triplets_panel"
            mine = cuda_margin.all_triplets if all_of_them else cuda_margin.semihard_triplets
            mine(panel, self.rows, self.distances, margin, self.loss, self.active, self.total)

    def _compare_losses(self) -> Tensor:
        """Return the true weights."""
        if self.kernel == "contrastive_panel":
            losses, within, between, weights = paired(self.case, (MARGIN, NEGATIVE_MARGIN), self.weight)
            close(self.within, within, 1e-5)
            close(self.between, between, 1e-5)
        else:
            kind = {"all": "all", "sem": "semihard", "har": "hard"}[self.kernel[:3]]
            losses, active, weights = mined(kind, self.case, MARGIN, self.weight[self._here()])
            same(self.active, active)
        close(self.loss, losses, 1e-5, 1e-6)
        return weights

    def _compare_weights(self, weights: Tensor) -> None:
        got, total, size = self.slopes, self.total, float(weights.abs().max())
        if self.kernel == "hardest_triplet_panel":
            got, total = torch.zeros_like(got).scatter_add_(1, self.chosen, self.two), self.two.sum(1)
        close(got, weights, 1e-6, 1e-6 * size)
        close(total, weights.sum(1), 1e-5, 1e-5 * size)


def any_layout(run: Run, kernel: str, layout: tuple[int, int, int, int]) -> None:
    Problem(kernel, layout).check(run)


def what_no_vector_begins(run: Run, kernel: str, name: str) -> None:
    Problem(kernel, (2, 132, 0, 0), name).check(run)


def classes_of_one(run: Run, kernel: str) -> None:
    Problem(kernel, (5, 40, 0, 0), classes=400).check(run)


def no_slopes(run: Run, kernel: str) -> None:
    """Nor is anything written of them."""
    Problem(kernel, (3, 40, 0, 0)).check(run, slopes=False)


def past_two_to_the_31(run: Run, kernel: str) -> None:
    problem = Problem(kernel, (3, 40, 0, 0))
    for name in ("scores", "distances", "slopes"):
        setattr(problem, name, far(getattr(problem, name)))
    problem.check(run)


@check("distances_panel")
def over_the_scores(run: Run) -> None:
    case = case_of(cuda_margin, 3, 40, first=0)
    with run():
        cuda_margin.distances(Panel(case.scores, None, 0, torch.ones(())), case.rows, case.scores)
    close(case.scores, case.d[:, case.order], 1e-6)


for _kernel, (_kinds, _wide) in KERNELS.items():
    _beginnings = tuple(kind if "," in kind else f"{kind}," for kind in _kinds)
    check(_kernel, problem=[name for name in FAMILY.problems if name.startswith(_beginnings)])(
        problems_of_triton
    )
    check(_kernel, kernel=[_kernel], layout=LAYOUTS)(any_layout)
    check(_kernel, kernel=[_kernel], name=_wide)(what_no_vector_begins)
    check(_kernel, kernel=[_kernel])(classes_of_one)
    check(_kernel, kernel=[_kernel])(past_two_to_the_31)
    if _kernel != "distances_panel":
        check(_kernel, kernel=[_kernel])(no_slopes)


@check("distances_panel")
def no_rows(run: Run) -> None:
    """The kernels that mine are launched as this one is."""
    known = case_of(cuda_margin, 3, 40, first=0).rows
    with run():
        cuda_margin.distances(no_panel(0, 40), known, torch.empty(0, 40))
