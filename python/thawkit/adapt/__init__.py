"""Unsupervised domain adaptation: labels from a source, images alone from the target."""

from thawkit.adapt.dan import DAN
from thawkit.adapt.fit import fit_adapt

__all__ = ["DAN", "fit_adapt"]
