"""What trains, epoch by epoch.

A schedule is a mapping from the epoch at which a stage begins, counted from 0, to its policy, or one string:
``{0: "head", 3: "last:2", 6: "all"}`` is ``head@0,last:2@3,all@6``. :func:`set_epoch` moves a frozen model to
the stage of an epoch. A stage whose policy draws blocks (``lisa:K``) is another one at each epoch.

Every stage is what freezing a stock model with its policy would give. Adapters of a stage that ends are
merged into their weights. Which channels train is settled for all stages when the model is frozen, so that a
run that goes on from a checkpoint trains the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from thawkit.errors import ThawkitError
from thawkit.frozen.policy import Plan, Policy, make_plan

Schedule = Policy | Mapping[int, Policy]


@dataclass
class Stages:
    """A schedule in one model.

    Attributes:
        plans: by the epoch at which each begins, in ascending order, the first 0.
        current: the one that the model is at, as :meth:`at` says.
    """

    plans: dict[int, Plan]
    current: int = 0

    @property
    def varied(self) -> bool:
        """Whether what trains depends on the epoch."""
        return len(self.plans) > 1 or bool(self.plans[0].draws)

    def at(self, epoch: int) -> int:
        """The beginning of the stage that ``epoch`` belongs to; ``epoch`` itself where blocks are drawn."""
        start = self._start(epoch)
        return epoch if self.plans[start].draws else start

    def plan(self, epoch: int) -> Plan:
        """What trains in an epoch."""
        return self.plans[self._start(epoch)].at(epoch)

    def _start(self, epoch: int) -> int:
        return max(start for start in self.plans if start <= epoch)


def make_stages(model: nn.Module, train: Schedule) -> Stages:
    """Resolve a schedule, or one policy as a schedule of one stage.

    Raises:
        ThawkitError: as :func:`thawkit.frozen.policy.make_plan`, or stages that do not begin at distinct
            epochs from 0.
    """
    schedule = parse_schedule(train)
    return Stages({start: make_plan(model, schedule[start]) for start in sorted(schedule)})


def parse_schedule(train: Schedule) -> Mapping[int, Policy]:
    """Policies by the epoch at which they begin; a single policy begins at 0.

    Raises:
        ThawkitError: epochs that are no integers, are given twice, or do not begin with 0.
    """
    if isinstance(train, str) and "@" in train:
        stages = [part.rpartition("@") for part in train.split(",")]
        if not all(at and start.strip().isdecimal() for _, at, start in stages):
            raise _no_schedule(train)
        schedule: Mapping[int, Policy] = {int(start): policy.strip() for policy, _, start in stages}
        if len(schedule) < len(stages):
            raise _no_schedule(train)
    elif isinstance(train, Mapping):
        schedule = train
    else:
        return {0: train}
    if not all(type(start) is int and start >= 0 for start in schedule) or 0 not in schedule:
        raise _no_schedule(train)
    return schedule


def _no_schedule(train: Schedule) -> ThawkitError:
    return ThawkitError(
        "train: expected a schedule of policies and distinct epochs at which they begin, the first at 0, as "
        f"'head@0,last:2@3' or {{0: 'head', 3: 'last:2'}}, got {train!r}"
    )
