"""Arithmetic that Triton lacks, shared by the kernels."""

# Triton reads annotations at run time, so they are not postponed here.
import triton
import triton.language as tl


@triton.jit
def log1p(x):
    """Return log(1 + x), exact to float32's rounding also for small x."""
    one_more = 1.0 + x
    return tl.where(
        one_more == 1.0, x, tl.log(one_more) * (x / tl.where(one_more == 1.0, 1.0, one_more - 1.0))
    )
