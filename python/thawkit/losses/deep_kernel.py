"""Deep kernels: what two samples differ in, learned on one half of them and tested on the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.losses.functional.two_sample import MMDTestResult
from thawkit.ops import checks
from thawkit.ops.pairwise import usual_squared_distance
from thawkit.ops.pairwise.common import lifted
from thawkit.ops.pairwise.reference import squared_distances

_SMALLEST_BANDWIDTH = 1e-6


class DeepKernel(nn.Module):
    """Deep kernel ``k(x, y) = [(1 - e) K(f(x), f(y)) + e] q(x, y)`` (Liu et al. 2020, eq. 1).

    K and q are Gaussian kernels ``exp(-|u - v|^2 / (2 s^2))`` of features and of inputs; q and e > 0 make the
    kernel characteristic whatever the features are. Bandwidths and e are parameters. Each product of
    Gaussians is one Gaussian of both rows side by side, so that a permutation test takes two passes.

    Args:
        features: f, from (N, ...) inputs to (N, ...) features.
        epsilon: e at the start, between 0 and 1.
        feature_bandwidth: of K at the start; None: the median distance of the first batch's features.
        input_bandwidth: of q at the start; None: the median distance of the first batch.
    """

    def __init__(
        self,
        features: nn.Module,
        epsilon: float = 0.01,
        feature_bandwidth: float | None = None,
        input_bandwidth: float | None = None,
    ):
        super().__init__()
        checks.finite("epsilon", epsilon)
        if not 0 < epsilon < 1:
            raise ThawkitError(f"epsilon must be between 0 and 1, got {epsilon}")
        self.features = features
        self.logit_epsilon = nn.Parameter(torch.tensor(math.log(epsilon / (1 - epsilon))))
        for name, value in (
            ("feature_bandwidth", feature_bandwidth),
            ("input_bandwidth", input_bandwidth),
        ):
            if value is not None:
                checks.positive_scalar(name, value)
            start = math.nan if value is None else math.log(value)
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(start)))

    log_feature_bandwidth: nn.Parameter
    log_input_bandwidth: nn.Parameter

    def terms(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, (N, F) rows) pairs such that ``k(i, j) = sum weight exp(-|row_i - row_j|^2)``."""
        inputs = lifted(inputs)
        features = lifted(self.features(inputs)).flatten(1)
        flat = inputs.flatten(1)
        self._start(features, flat)
        near = flat / (math.sqrt(2) * self.log_input_bandwidth.exp())
        both = torch.cat((features / (math.sqrt(2) * self.log_feature_bandwidth.exp()), near), 1)
        epsilon = self.logit_epsilon.sigmoid()
        return [(1 - epsilon, both), (epsilon, near)]

    @torch.no_grad()
    def _start(self, features: Tensor, flat: Tensor) -> None:
        for log, rows in ((self.log_feature_bandwidth, features), (self.log_input_bandwidth, flat)):
            if bool(log.isnan()):
                square = usual_squared_distance(rows, rows[:0])
                log.copy_(square.where(square > 0, 1).sqrt().clamp_min(_SMALLEST_BANDWIDTH).log())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the (N, M) kernel values of inputs (N, ...) and (M, ...)."""
        n = x.shape[0]
        total = None
        for weight, rows in self.terms(torch.cat((x, y))):
            values = weight * torch.exp(-squared_distances(rows[:n], rows[n:]))
            total = values if total is None else total + values
        assert total is not None
        return total


class DeepKernelTest:
    """Two-sample test whose kernel is learned on a part of the data and tested on the rest.

    The kernel's parameters climb the power criterion of batches (Liu et al. 2020, algorithm 1); the test on
    rows that training has not seen is exact, however long or badly it trained.

    Args:
        kernel: a :class:`DeepKernel`; trained in place.
        steps: of Adam.
        lr: its step size.
        batch_size: rows of each sample in a batch.
        train_share: share of the rows that the kernel learns from, between 0 and 1.
        permutations: as for :func:`thawkit.losses.functional.mmd_test`.
        seed: of the split, the batches and the permutations.

    Attributes:
        history: power criterion of each step's batch.
    """

    def __init__(
        self,
        kernel: DeepKernel,
        *,
        steps: int = 300,
        lr: float = 5e-3,
        batch_size: int = 128,
        train_share: float = 0.5,
        permutations: int = 1000,
        seed: int = 0,
    ):
        checks.integer("steps", steps, 0)
        checks.positive_scalar("lr", lr)
        checks.integer("batch_size", batch_size, 2)
        checks.finite("train_share", train_share)
        if not 0 < train_share < 1:
            raise ThawkitError(f"train_share must be between 0 and 1, got {train_share}")
        checks.integer("permutations", permutations, 1)
        checks.integer("seed", seed)
        self.kernel = kernel
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.train_share = train_share
        self.permutations = permutations
        self.seed = seed
        self.history: list[float] = []

    def __call__(self, x: Tensor, y: Tensor) -> MMDTestResult:
        """Split the samples (N, ...) and (M, ...) at random, :meth:`fit` on one part, :meth:`test` the other.

        Raises:
            ThawkitError: as :func:`thawkit.losses.functional.mmd_test`; a part has fewer than 2 rows.
        """
        generator = torch.Generator().manual_seed(self.seed)
        parts = [self._split(name, sample, generator) for name, sample in (("x", x), ("y", y))]
        (x_train, x_test), (y_train, y_test) = parts
        self.fit(x_train, y_train)
        return self.test(x_test, y_test)

    def _split(self, name: str, sample: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        checks.floating(name, sample)
        rows = sample.shape[0] if sample.dim() else 0
        train = round(rows * self.train_share)
        if min(train, rows - train) < 2:
            raise ThawkitError(
                f"{name} must have at least 2 rows to learn from and 2 to test, got {rows} rows and "
                f"train_share={self.train_share}"
            )
        order = torch.randperm(rows, generator=generator).to(sample.device)
        return sample[order[:train]], sample[order[train:]]

    def fit(self, x: Tensor, y: Tensor) -> DeepKernelTest:
        """Train the kernel on samples (N, ...) and (M, ...) and return this test.

        Raises:
            ThawkitError: shapes, dtypes or devices do not fit, a sample has fewer than 2 rows.
        """
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(self.kernel.parameters(), lr=self.lr)
        rows = min(self.batch_size, x.shape[0], y.shape[0])  # of both: pairs have the paper's criterion
        self.kernel.train()
        self.history = []
        for _ in range(self.steps):
            batches = (
                sample[torch.randperm(sample.shape[0], generator=generator)[:rows].to(sample.device)]
                for sample in (x, y)
            )
            power = F.mmd_power(*batches, kernel=self.kernel)
            optimizer.zero_grad()
            (-power).backward()
            optimizer.step()
            self.history.append(power.item())
        self.kernel.eval()
        return self

    def test(self, x: Tensor, y: Tensor) -> MMDTestResult:
        """Return the permutation test of samples that the kernel has not seen."""
        self.kernel.eval()
        return F.mmd_test(x, y, self.permutations, kernel=self.kernel, seed=self.seed)
