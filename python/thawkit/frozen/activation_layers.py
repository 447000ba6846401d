"""Activations beside ReLU, and dropout, that save one bit an element."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from thawkit.frozen.layers import Rewritten, is_scripting, packs_bits
from thawkit.ops.frozen import (
    packed_dropout,
    packed_hardsigmoid,
    packed_leaky_relu,
    packed_prelu,
    packed_threshold,
)


class PackedLeakyReLU(Rewritten, nn.LeakyReLU):
    """``nn.LeakyReLU`` that saves one bit an element."""

    stock = nn.LeakyReLU

    def forward(self, input: Tensor) -> Tensor:
        """Multiply what is not above 0 of ``input``, of any shape, by the slope."""
        if is_scripting():
            return F.leaky_relu(input, self.negative_slope, self.inplace)
        elif packs_bits(input):
            return packed_leaky_relu(input, self.negative_slope, inplace=self.inplace)
        else:
            return self.stock.forward(self, input)


class PackedRReLU(Rewritten, nn.RReLU):
    """``nn.RReLU`` that saves one bit an element in evaluation mode; in training it draws its slopes."""

    stock = nn.RReLU

    def forward(self, input: Tensor) -> Tensor:
        """Multiply what is not above 0 of ``input``, of any shape, by the mean slope."""
        if is_scripting():
            return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)
        elif not self.training and packs_bits(input):
            return packed_leaky_relu(input, (self.lower + self.upper) / 2, inplace=self.inplace)
        else:
            return self.stock.forward(self, input)


class PackedThreshold(Rewritten, nn.Threshold):
    """``nn.Threshold`` that saves one bit an element."""

    stock = nn.Threshold

    def forward(self, input: Tensor) -> Tensor:
        """Replace what is not above the threshold of ``input``, of any shape."""
        if is_scripting():
            return F.threshold(input, self.threshold, self.value, self.inplace)
        elif packs_bits(input):
            return packed_threshold(input, self.threshold, self.value, inplace=self.inplace)
        else:
            return self.stock.forward(self, input)


class PackedHardsigmoid(Rewritten, nn.Hardsigmoid):
    """``nn.Hardsigmoid`` that saves one bit an element."""

    stock = nn.Hardsigmoid

    def forward(self, input: Tensor) -> Tensor:
        """``clamp(input + 3, 0, 6) / 6``, of any shape."""
        if is_scripting():
            return F.hardsigmoid(input, self.inplace)
        elif packs_bits(input):
            return packed_hardsigmoid(input, inplace=self.inplace)
        else:
            return self.stock.forward(self, input)


class PackedPReLU(Rewritten, nn.PReLU):
    """``nn.PReLU`` that saves one bit an element while its weight is frozen."""

    stock = nn.PReLU

    def forward(self, input: Tensor) -> Tensor:
        """Multiply what is not above 0 of ``input``, ``(N, C, *sizes)``, by the weight of its channel."""
        if is_scripting():
            return F.prelu(input, self.weight)
        elif packs_bits(input) and not self.weight.requires_grad:
            return packed_prelu(input, self.weight)
        else:
            return self.stock.forward(self, input)


class PackedDropout(Rewritten, nn.Dropout):
    """``nn.Dropout`` that saves one bit an element."""

    stock = nn.Dropout

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of ``input``, of any shape."""
        if is_scripting():
            return F.dropout(input, self.p, self.training, self.inplace)
        elif packs_bits(input):
            return packed_dropout(input, self.p, self.training, inplace=self.inplace)
        else:
            return self.stock.forward(self, input)


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    new.stock: new
    for new in (
        PackedLeakyReLU,
        PackedRReLU,
        PackedThreshold,
        PackedHardsigmoid,
        PackedPReLU,
        PackedDropout,
    )
}
