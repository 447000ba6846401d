"""The compiled kernels' names for what they compute, as ``csrc/cpu/kernels.h`` numbers them."""

PACKED = {"relu": 0, "clamp": 1, "threshold": 2, "leaky": 3, "hardsigmoid": 4, "abs": 5, "true": 6}
MASKED = {"pass": 0, "part": 1, "two": 2, "sign": 3}
