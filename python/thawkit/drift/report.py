"""What a drift check found, for people and for logs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thawkit.drift.features import FeatureShift

_SHOWN = 5  # features


@dataclass(frozen=True)
class DriftReport:
    """Result of one check of a batch against the reference.

    Attributes:
        drifted: whether ``p_value <= threshold``.
        p_value: of the permutation test of MMD: how often a batch from the reference's distribution would
            look at least as different.
        threshold: what the p-value is held against.
        statistic: unbiased squared MMD of the standardised features.
        critical_value: the statistic from which on the p-value is at most the threshold.
        reference_rows: that the batch was compared with.
        batch_rows: of the batch.
        features: every feature, the farthest moved first.
    """

    drifted: bool
    p_value: float
    threshold: float
    statistic: float
    critical_value: float
    reference_rows: int
    batch_rows: int
    features: tuple[FeatureShift, ...]

    @property
    def moved(self) -> tuple[FeatureShift, ...]:
        """The features whose corrected p-value is at most the threshold, the farthest moved first."""
        return tuple(feature for feature in self.features if feature.p_value <= self.threshold)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings and lists, for a log."""
        return asdict(self) | {"features": [asdict(feature) for feature in self.features]}

    def __str__(self) -> str:
        """Return a few lines that say what was found."""
        verdict = "drift" if self.drifted else "no drift"
        relation = "at most" if self.drifted else "above"
        lines = [
            f"{verdict}: p = {self.p_value:.3g}, {relation} {self.threshold:g} "
            f"({self.batch_rows} rows against {self.reference_rows})",
            f"MMD^2 {self.statistic:.3g}, critical value {self.critical_value:.3g}",
        ]
        moved = self.moved
        if moved:
            lines.append(f"{len(moved)} of {len(self.features)} features moved; the farthest:")
            width = max(len(feature.name) for feature in moved[:_SHOWN])
            lines += [
                f"  {f.name:<{width}}  KS {f.ks:.2f}  p {f.p_value:.2g}  mean {f.mean_shift:+.2f} sd"
                for f in moved[:_SHOWN]
            ]
        else:
            lines.append(f"none of {len(self.features)} features moved by itself")
        return "\n".join(lines)
