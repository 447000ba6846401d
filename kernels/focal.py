"""Sigmoid and softmax focal losses in Triton: logits are read once, losses and gradients leave the same pass.

All arithmetic is float32. Sums leave as one number a program, in an order that no schedule changes.
"""

# Triton reads annotations at run time, so they are not postponed here.
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from thawkit.kernels.arithmetic import log1p
from thawkit.kernels.launch import given


@triton.jit
def _power(miss, gamma, GAMMA: tl.constexpr):
    """Return ``miss ** gamma`` of numbers from 0 to 1; GAMMA is 0, 1, 2 or -1 for any other."""
    if GAMMA == 0:
        return tl.full(miss.shape, 1.0, tl.float32)
    elif GAMMA == 1:
        return miss
    elif GAMMA == 2:
        return miss * miss
    else:
        return tl.exp(gamma * tl.log(miss))


@triton.jit
def _one_side(miss, hit, cross_entropy, gamma, GAMMA: tl.constexpr):
    """Return a target's loss, and its slope as the logit moves away from the target."""
    power = _power(miss, gamma, GAMMA)
    loss = power * cross_entropy
    return loss, power * miss + gamma * hit * loss


@triton.jit
def _mixed(x, t, soft, p, q, softplus, positive, negative, pos_weight, gamma, GAMMA: tl.constexpr):
    """Return Lin et al.'s loss (2017, eq. 5) of a target t, whose cross-entropy takes ``soft`` for it."""
    miss = p * (1.0 - t) + q * t
    # the term times 0 makes an infinite logit come out as torch's (1 - t) x - logsigmoid(x) does
    below = tl.minimum(x, 0.0)
    weighted = pos_weight * soft
    cross_entropy = (
        tl.maximum(x, 0.0) * (1.0 - soft)
        - below * weighted
        + below * 0.0
        + softplus * (1.0 - soft + weighted)
    )
    power = _power(miss, gamma, GAMMA)
    ratio = tl.where(miss > 0.0, p * q / tl.where(miss > 0.0, miss, 1.0), 0.0)
    weight = positive * t + negative * (1.0 - t)
    slope = (
        power * (p * (1.0 - soft) - q * weighted) + gamma * power * ratio * (1.0 - 2.0 * t) * cross_entropy
    )
    return weight * power * cross_entropy, weight * slope


@triton.jit
def _sigmoid(
    X, T, Loss, Partial, Grad, Upstream, Classes, Mask, RowWeight, Divisor,
    count, positive, negative, gamma, smoothing, ignored, factor, period, table, row, width,
    GAMMA: tl.constexpr, INDICES: tl.constexpr, IGNORES: tl.constexpr, SEPARATE: tl.constexpr,
    CLASSES: tl.constexpr, MASK: tl.constexpr, ROW_WEIGHT: tl.constexpr, DIVISOR: tl.constexpr,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, GRAD: tl.constexpr, UPSTREAM: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    kept = inside
    if INDICES:
        index = tl.load(T + at // width, mask=inside, other=0)
        t = tl.where(index == at % width, 1.0, 0.0)
        if IGNORES:
            kept = kept & (index.to(tl.float32) != ignored)
    else:
        t = tl.load(T + at, mask=inside, other=0.0).to(tl.float32)
        if IGNORES:
            kept = kept & (t != ignored)
    if MASK:
        kept = kept & (tl.load(Mask + at, mask=inside, other=0) != 0)
    t = tl.where(kept, t, 0.0)
    x = tl.where(kept, x, 0.0)
    pos_weight = 1.0
    if CLASSES:
        column = at % period
        positive = tl.load(Classes + column, mask=inside, other=0.0)
        negative = tl.load(Classes + table + column, mask=inside, other=0.0)
        pos_weight = tl.load(Classes + 2 * table + column, mask=inside, other=0.0)

    # p and 1 - p come from exp(-|x|) separately, so that neither tail cancels
    e = tl.exp(-tl.abs(x))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    p = tl.where(x >= 0.0, larger, smaller)
    q = tl.where(x >= 0.0, smaller, larger)
    softplus = log1p(e)
    if SEPARATE:
        of_one, slope_of_one = _one_side(q, p, softplus - tl.minimum(x, 0.0), gamma, GAMMA)
        of_zero, slope_of_zero = _one_side(p, q, softplus + tl.maximum(x, 0.0), gamma, GAMMA)
        ones = pos_weight * positive * t
        zeros = negative * (1.0 - t)
        loss = ones * of_one + zeros * of_zero
        slope = zeros * slope_of_zero - ones * slope_of_one
    else:
        soft = t * (1.0 - smoothing) + smoothing * 0.5
        loss, slope = _mixed(x, t, soft, p, q, softplus, positive, negative, pos_weight, gamma, GAMMA)
    if ROW_WEIGHT:
        weight = tl.load(RowWeight + at // row, mask=inside, other=0.0)
        loss *= weight
        slope *= weight
    loss = tl.where(kept, loss, 0.0)
    if LOSS:
        tl.store(Loss + at, loss, mask=inside)
    if TOTAL:
        tl.store(Partial + program, tl.sum(loss, 0))
    if GRAD:
        if UPSTREAM:
            slope *= tl.load(Upstream + at, mask=inside, other=0.0).to(tl.float32)
        else:
            slope *= factor
        if DIVISOR:
            slope /= tl.load(Divisor)
        tl.store(Grad + at, tl.where(kept, slope, 0.0), mask=inside)


@triton.jit
def _add_classes(maximum, others, z):
    """Take a tile of logits into each position's maximum and its sum of exponentials but the largest one.

    Without the largest, nothing cancels where its probability is near 1.
    """
    larger = tl.maximum(maximum, tl.max(z, 1))
    first = maximum == -float("inf")
    before = (others + 1.0) * tl.exp(tl.where(first, 0.0, maximum) - larger)
    grown = larger > maximum
    ties = z == larger[:, None]
    below = tl.sum(tl.where(ties, 0.0, tl.exp(z - larger[:, None])), 1)
    equal = tl.sum(tl.where(ties, 1.0, 0.0), 1)
    grown_others = tl.where(first, 0.0, before) + below + (equal - 1.0)
    return larger, tl.where(grown, grown_others, others + below + equal)


@triton.jit
def _class_terms(z, maximum, others, gamma, GAMMA: tl.constexpr):
    """Return p and 1 - p of each class, its loss as if it were the target, and the loss's slope by log p."""
    distance = z - maximum[:, None]
    log_p = distance - log1p(others)[:, None]
    p = tl.exp(distance) / (1.0 + others)[:, None]
    miss = tl.where(distance == 0.0, (others / (1.0 + others))[:, None], 1.0 - p)
    power = _power(miss, gamma, GAMMA)
    ratio = tl.where(miss > 0.0, log_p / tl.where(miss > 0.0, miss, 1.0), -1.0)
    return p, miss, -power * log_p, gamma * power * p * ratio - power


@triton.jit
def _through_softmax(slope, p, miss, slopes):
    """Return the gradient of the logits: ``slope - p sum(slope)``, where nothing cancels for p near 1."""
    return slope * miss - p * (slopes[:, None] - slope)


@triton.jit
def _load_classes(X, base, first, classes, inner, inside, target, scale, Offset, margin,
                  OFFSET: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    column = first + tl.arange(0, BLOCK_C)
    there = inside[:, None] & (column[None, :] < classes)
    at = base[:, None] + column[None, :].to(tl.int64) * inner
    z = tl.load(X + at, mask=there, other=0.0).to(tl.float32) * scale
    if OFFSET:
        z += tl.load(Offset + column, mask=column < classes, other=0.0)[None, :]
    z -= tl.where(column[None, :] == target[:, None], margin[:, None], 0.0)
    z = tl.where(inside[:, None], z, 0.0)
    return column, at, there, tl.where(column[None, :] < classes, z, -float("inf"))


@triton.jit
def _class_weights(T, at, there, column, classes, target, Alpha, smoothing,
                   PROBABLE: tl.constexpr, ALPHA: tl.constexpr):  # fmt: skip
    if PROBABLE:
        t = tl.load(T + at, mask=there, other=0.0).to(tl.float32)
    else:
        t = tl.where(column[None, :] == target[:, None], 1.0, 0.0)
    weight = (1.0 - smoothing) * t + smoothing / classes
    if ALPHA:
        weight *= tl.load(Alpha + column, mask=column < classes, other=0.0)[None, :]
    return tl.where(there, weight, 0.0)


@triton.jit
def _upstream(Upstream, Divisor, position, inside, known, factor,
              UPSTREAM: tl.constexpr, DIVISOR: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """Return what gradients are multiplied by, loaded late: no register is to hold it before."""
    upstream = tl.full([BLOCK_P], 1.0, tl.float32) * factor
    if UPSTREAM:
        upstream = tl.load(Upstream + position, mask=inside, other=0.0)
    if DIVISOR:
        upstream /= tl.load(Divisor)
    return tl.where(known, upstream, float("nan"))


@triton.jit
def _softmax(
    X, T, Loss, Partial, Grad, Upstream, Alpha, Offset, Margin, Divisor,
    positions, classes, inner, blocks, scale, gamma, smoothing, ignored, factor,
    GAMMA: tl.constexpr, PROBABLE: tl.constexpr, ALPHA: tl.constexpr, OFFSET: tl.constexpr,
    MARGIN: tl.constexpr, DIVISOR: tl.constexpr, LOSS: tl.constexpr, TOTAL: tl.constexpr, GRAD: tl.constexpr,
    UPSTREAM: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # ROWS: the classes of a position are neighbours in memory, else its sample's positions are
    if ROWS:
        position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = position < positions
        base = position * classes
    else:
        within = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
        sample = (tl.program_id(0) // blocks).to(tl.int64)
        inside = within < inner
        position = sample * inner + within
        base = sample * classes * inner + within
    counts = inside
    known = inside
    if PROBABLE:
        target = tl.full([BLOCK_P], -1, tl.int32)
    else:
        target = tl.load(T + position, mask=inside, other=0)
        counts = counts & (target != ignored)
        known = (target >= 0) & (target < classes)
        target = tl.where(known, target, -1).to(tl.int32)  # half the registers
    margin = tl.zeros([BLOCK_P], tl.float32)
    if MARGIN and not PROBABLE:  # probabilities name no class
        margin = tl.load(Margin + target, mask=counts & known, other=0.0)

    maximum = tl.full([BLOCK_P], -float("inf"), tl.float32)
    others = tl.zeros([BLOCK_P], tl.float32)
    loss = tl.zeros([BLOCK_P], tl.float32)
    slopes = tl.zeros([BLOCK_P], tl.float32)  # sum over the classes
    if WHOLE:
        column, at, there, z = _load_classes(
            X, base, 0, classes, inner, counts, target, scale, Offset, margin, OFFSET, BLOCK_C
        )
        maximum, others = _add_classes(maximum, others, z)
        p, miss, term, slope = _class_terms(z, maximum, others, gamma, GAMMA)
        weight = _class_weights(T, at, there, column, classes, target, Alpha, smoothing, PROBABLE, ALPHA)
        loss = tl.sum(tl.where(weight == 0.0, 0.0, weight * term), 1)
        if GRAD:
            upstream = _upstream(
                Upstream, Divisor, position, inside, known, factor, UPSTREAM, DIVISOR, BLOCK_P
            )
            slope = tl.where(weight == 0.0, 0.0, weight * slope)
            gradient = _through_softmax(slope, p, miss, tl.sum(slope, 1)) * (upstream * scale)[:, None]
            written = inside[:, None] & (column[None, :] < classes)
            tl.store(Grad + at, tl.where(counts[:, None], gradient, 0.0), mask=written)
    else:
        for first in range(0, classes, BLOCK_C):
            column, at, there, z = _load_classes(
                X, base, first, classes, inner, counts, target, scale, Offset, margin, OFFSET, BLOCK_C
            )
            maximum, others = _add_classes(maximum, others, z)
        for first in range(0, classes, BLOCK_C):
            column, at, there, z = _load_classes(
                X, base, first, classes, inner, counts, target, scale, Offset, margin, OFFSET, BLOCK_C
            )
            p, miss, term, slope = _class_terms(z, maximum, others, gamma, GAMMA)
            weight = _class_weights(T, at, there, column, classes, target, Alpha, smoothing, PROBABLE, ALPHA)
            loss += tl.sum(tl.where(weight == 0.0, 0.0, weight * term), 1)
            slopes += tl.sum(tl.where(weight == 0.0, 0.0, weight * slope), 1)
        if GRAD:
            upstream = _upstream(
                Upstream, Divisor, position, inside, known, factor, UPSTREAM, DIVISOR, BLOCK_P
            )
            for first in range(0, classes, BLOCK_C):
                column, at, there, z = _load_classes(
                    X, base, first, classes, inner, counts, target, scale, Offset, margin, OFFSET, BLOCK_C
                )
                p, miss, term, slope = _class_terms(z, maximum, others, gamma, GAMMA)
                weight = _class_weights(
                    T, at, there, column, classes, target, Alpha, smoothing, PROBABLE, ALPHA
                )
                slope = tl.where(weight == 0.0, 0.0, weight * slope)
                gradient = _through_softmax(slope, p, miss, slopes) * (upstream * scale)[:, None]
                written = inside[:, None] & (column[None, :] < classes)
                tl.store(Grad + at, tl.where(counts[:, None], gradient, 0.0), mask=written)
    loss = tl.where(counts, tl.where(known, loss, float("nan")), 0.0)
    if LOSS:
        tl.store(Loss + position, loss, mask=inside)
    if TOTAL:
        tl.store(Partial + tl.program_id(0), tl.sum(loss, 0))


class Outputs(NamedTuple):
    """Where results go, each where it is wanted, and what gradients are multiplied by.

    ``loss`` is elementwise, ``total`` (programs,) float32 sums of it, from :func:`sigmoid_programs` or
    :func:`softmax_programs`. The gradient is that of the loss times ``upstream``, elementwise, or ``factor``,
    over ``divisor``, a float32 scalar.
    """

    loss: torch.Tensor | None = None
    total: torch.Tensor | None = None
    grad: torch.Tensor | None = None
    upstream: torch.Tensor | None = None
    factor: float = 1.0
    divisor: torch.Tensor | None = None

    def flags(self) -> dict[str, bool]:
        """Return what the kernels compile for."""
        return {
            "LOSS": self.loss is not None,
            "TOTAL": self.total is not None,
            "GRAD": self.grad is not None,
            "UPSTREAM": self.upstream is not None,
            "DIVISOR": self.divisor is not None,
        }


def _gamma(gamma: float) -> int:
    return int(gamma) if gamma in (0.0, 1.0, 2.0) else -1


_BLOCK = 1024
_WIDE = (1 << 31) - _BLOCK


def sigmoid_programs(count: int) -> int:
    """Return how many sums :func:`sigmoid_focal` writes."""
    return triton.cdiv(count, _BLOCK)


def sigmoid_focal(
    x: torch.Tensor,
    t: torch.Tensor,
    out: Outputs,
    *,
    positive: float,
    negative: float,
    gamma: float,
    smoothing: float = 0.0,
    separate: bool = False,
    ignored: float | None = None,
    classes: torch.Tensor | None = None,
    period: int = 1,
    mask: torch.Tensor | None = None,
    row_weight: torch.Tensor | None = None,
    row: int = 1,
) -> None:
    """Write losses and gradients of contiguous logits.

    ``t`` has their shape, or that without the last dimension and int64 classes. ``classes`` (3, L) weighs
    positives, negatives and the positive part for element ``i % period``; ``mask`` says where losses
    count; ``row_weight`` is a factor of each ``row`` elements.
    """
    if x.numel() == 0:
        return
    indices = t.dim() < x.dim()
    _sigmoid[(sigmoid_programs(x.numel()),)](
        x, t, given(out.loss, x), given(out.total, x), given(out.grad, x), given(out.upstream, x),
        given(classes, x), given(mask, x), given(row_weight, x), given(out.divisor, x),
        x.numel(), positive, negative, gamma, smoothing, 0.0 if ignored is None else ignored, out.factor,
        period, 0 if classes is None else classes.shape[1], row,
        x.shape[-1] if indices else 1,
        GAMMA=_gamma(gamma), INDICES=indices,
        IGNORES=ignored is not None, SEPARATE=separate, CLASSES=classes is not None, MASK=mask is not None,
        ROW_WEIGHT=row_weight is not None, WIDE=x.numel() > _WIDE, BLOCK=_BLOCK, **out.flags(),
    )  # fmt: skip


_TILE = 2048  # logits a program holds
_POSITIONS = 64  # of a sample, next to each other
_REGISTERS = 128  # a thread may have: left to itself, the compiler spills some to make room for more blocks


def _softmax_tiles(classes: int, inner: int) -> tuple[int, int]:
    """Return how many positions and classes a tile has."""
    block_c = triton.next_power_of_2(classes)
    if inner == 1:
        block_c = min(block_c, _TILE)
        return max(1, _TILE // max(block_c, 16)), block_c
    whole = _TILE // _POSITIONS
    # of classes in several tiles each logit takes more registers: addresses lie far apart
    return _POSITIONS, block_c if block_c <= whole else whole // 2


def softmax_programs(samples: int, classes: int, inner: int) -> int:
    """Return how many sums :func:`softmax_focal` writes."""
    block_p, _ = _softmax_tiles(classes, inner)
    return triton.cdiv(samples, block_p) if inner == 1 else samples * triton.cdiv(inner, block_p)


def softmax_focal(
    x: torch.Tensor,
    t: torch.Tensor,
    out: Outputs,
    *,
    gamma: float,
    alpha: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    scale: float = 1.0,
    smoothing: float = 0.0,
    ignored: int = -100,
) -> None:
    """Write losses (N, ...) and gradients of contiguous logits (N, C, ...).

    ``t`` holds int64 classes (N, ...), of which those that are neither a class nor ``ignored`` give NaN, or
    probabilities. ``alpha``, ``offset`` and ``margin`` are (C,) in float32.
    """
    samples, classes = x.shape[:2]
    inner = x.shape[2:].numel()
    if x.numel() == 0:
        return
    block_p, block_c = _softmax_tiles(classes, inner)
    _softmax[(softmax_programs(samples, classes, inner),)](
        x, t, given(out.loss, x), given(out.total, x), given(out.grad, x), given(out.upstream, x),
        given(alpha, x), given(offset, x), given(margin, x), given(out.divisor, x),
        samples * inner, classes, inner, triton.cdiv(inner, block_p), scale, gamma, smoothing, ignored,
        out.factor, GAMMA=_gamma(gamma), PROBABLE=t.is_floating_point(), ALPHA=alpha is not None,
        OFFSET=offset is not None, MARGIN=margin is not None, ROWS=inner == 1, WHOLE=classes <= block_c,
        BLOCK_P=block_p, BLOCK_C=block_c, maxnreg=None if inner == 1 else _REGISTERS, **out.flags(),
    )  # fmt: skip
