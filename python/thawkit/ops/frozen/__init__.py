"""Operators for frozen networks that save the least their backward pass needs."""

from thawkit.ops.frozen import reference
from thawkit.ops.frozen.activations import (
    packed_abs,
    packed_clamp,
    packed_hardsigmoid,
    packed_leaky_relu,
    packed_prelu,
    packed_relu,
    packed_threshold,
)
from thawkit.ops.frozen.avg_pool import adaptive_avg_pool, avg_pool
from thawkit.ops.frozen.dropout import packed_dropout
from thawkit.ops.frozen.masks import (
    KERNELS,
    channel_sums,
    pack_clamp_,
    pack_positive,
    packed_relu_backward,
    packed_relu_backward_sum,
)
from thawkit.ops.frozen.max_pool import packed_max_pool
from thawkit.ops.frozen.normalization import fixed_batch_norm

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "channel_sums",
    "fixed_batch_norm",
    "pack_clamp_",
    "pack_positive",
    "packed_abs",
    "packed_clamp",
    "packed_dropout",
    "packed_hardsigmoid",
    "packed_leaky_relu",
    "packed_max_pool",
    "packed_prelu",
    "packed_relu",
    "packed_relu_backward",
    "packed_relu_backward_sum",
    "packed_threshold",
    "reference",
]

BACKENDS = dict.fromkeys(
    (
        "packed_relu",
        "masked_channel_sums",
        "packed_max_pool",
        "packed_dropout",
        "fixed_batch_norm",
        "quantize",
    ),
    tuple(KERNELS),
)
