"""Arithmetic that Triton lacks, and what the epilogues on panels and the fused kernels do with logits."""

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


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), which never overflows."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logistic(x):
    """Return 1 / (1 + exp(-x)), which never overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def signed_logits(products, own, scale, bias):
    """Return -1 for a pair and 1 for others, and the logits whose softplus SigLIP adds up."""
    sign = tl.where(own, -1.0, 1.0)
    return sign, sign * (products * scale + bias)


@triton.jit
def add_exponentials(maximum, total, logits, AXIS: tl.constexpr):
    """Take logits into maxima and the sums of the exponentials of what is below them or equal."""
    larger = tl.maximum(maximum, tl.max(logits, AXIS))
    finite = tl.where(larger == -float("inf"), 0.0, larger)
    total *= tl.exp(maximum - finite)  # first: behind the exponentials it costs registers
    if len(logits.shape) == 1:
        exponentials = tl.exp(logits - finite)
    else:
        exponentials = tl.exp(logits - tl.expand_dims(finite, AXIS))
    return larger, total + tl.sum(exponentials, AXIS)


@triton.jit
def softmax_loss(maximum, total, positive):
    """Return the maximum with the positive, the sums below it without and with that, and the loss.

    The positive stays out of the sum, so that nothing cancels where it dominates; -inf: there is none.
    """
    larger = tl.maximum(maximum, positive)
    larger = tl.where(larger == -float("inf"), 0.0, larger)
    others = total * tl.exp(maximum - larger)
    both = others + tl.exp(positive - larger)
    loss = tl.where(positive >= maximum, log1p(others), tl.log(both) + (larger - positive))
    return larger, others, both, loss
