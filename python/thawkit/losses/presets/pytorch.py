"""Stand-ins for ``torch.nn.LinearCrossEntropyLoss`` and its function, in torch since 2.13.

They are the losses of this package, which have torch's arguments from the start. ``options`` is taken and
without effect: logits are never stored and sums are in float32 (or float64) in any case, label smoothing,
probabilities with a gradient, K-dimensional biases and a second backward pass included.
"""

from thawkit.losses.classifier import LinearCrossEntropyLoss
from thawkit.losses.functional.classifier import linear_cross_entropy

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]
