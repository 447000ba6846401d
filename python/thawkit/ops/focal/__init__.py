"""Focal losses: each form's schema, checks and gradient in a module, their definitions in ``reference``."""

from thawkit.ops.focal import imbalanced, softmax
from thawkit.ops.focal.cross_entropy import cross_entropy
from thawkit.ops.focal.sigmoid import BACKENDS as _SIGMOID
from thawkit.ops.focal.sigmoid import sigmoid_focal
from thawkit.ops.focal.softmax import BACKENDS as _SOFTMAX
from thawkit.ops.focal.softmax import softmax_focal

__all__ = ["cross_entropy", "imbalanced", "sigmoid_focal", "softmax", "softmax_focal"]

BACKENDS = {**_SIGMOID, **_SOFTMAX}
