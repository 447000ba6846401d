"""Has what a deployed model sees moved away from what it was made for?"""

from thawkit.drift.detector import DriftDetector, drift
from thawkit.drift.features import FeatureShift
from thawkit.drift.report import DriftReport

__all__ = ["DriftDetector", "DriftReport", "FeatureShift", "drift"]
