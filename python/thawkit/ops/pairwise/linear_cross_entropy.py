"""A linear classifier's cross-entropy: checks, choice of backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.dispatch import choose
from thawkit.ops.pairwise import reference
from thawkit.ops.pairwise.common import full_precision, product
from thawkit.ops.pairwise.row_softmax import OBJECTIONS, row_softmax

IGNORED = -100  # torch's default


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = IGNORED,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of a linear layer's outputs (:func:`torch.nn.functional.linear_cross_entropy`).

    Args:
        input: (..., D).
        linear_weight: (C, D), or (C, d_1, ..., d_K, D); may be float32 beside half-precision input.
        target: int64 classes (..., d_1, ..., d_K), or probabilities (..., C, d_1, ..., d_K), which get a
            gradient.
        linear_bias: (C, d_1, ..., d_K).
        weight: (C,) weights of the classes.
        reduction: ``none`` gives losses (..., d_1, ..., d_K). ``mean`` divides by the sum of the weights of
            the target classes, and probabilities by the number of targets.
        ignore_index: target class without a loss. Its rows have gradient 0; on the CPU, unless in float64,
            even where they hold NaN, which gives torch NaN.
        label_smoothing: share of each target that is spread evenly over the classes.

    Returns:
        The loss: float64 for float64 inputs, else float32. On the CPU, unless in float64, logits, and so
        biases, beyond 2.3e38 in size count as infinite.

    Raises:
        ThawkitError: shapes, dtypes, devices or targets do not fit, a number out of range, or there is
            nothing to take the mean of.
    """
    _check_layer(input, linear_weight, linear_bias)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    ignored = IGNORED if ignore_index is None else ignore_index
    _check_target(target, input, linear_weight, ignored)
    if weight is not None:
        _check_part("weight", weight, linear_weight.shape[:1], input)
    checks.finite("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ThawkitError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
    leading, positions = input.shape[:-1], linear_weight.shape[1:-1]
    checks.reduced("input", leading.numel() * positions.numel(), reduction)
    backend = choose("linear_cross_entropy", OBJECTIONS, input, linear_weight)
    compute = _by_definition if backend == "reference" else _on_the_engine
    with full_precision(input):
        loss = compute(
            input.reshape(leading.numel(), input.shape[-1]),
            linear_weight,
            target.reshape(leading.numel(), *target.shape[len(leading) :]),
            linear_bias,
            None if weight is None else weight.detach(),
            reduction,
            ignored,
            label_smoothing,
        )
    return loss.reshape(leading + positions) if reduction == "none" else loss


def _by_definition(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignored: int,
    label_smoothing: float,
) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return reference.linear_cross_entropy(
        input.to(dtype),
        linear_weight.to(dtype),
        target.to(dtype if target.is_floating_point() else torch.int64),
        None if linear_bias is None else linear_bias.to(dtype),
        None if weight is None else weight.to(dtype),
        reduction,
        ignored,
        label_smoothing,
    )


def _on_the_engine(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignored: int,
    label_smoothing: float,
) -> Tensor:
    """Each position's classifier on its own: all but the log-sum-exp is linear in the logits."""
    classes, rows = linear_weight.shape[0], input.shape[0]
    if linear_weight.dtype != input.dtype:
        input, linear_weight = input.float(), linear_weight.float()
    matrices = _separate(linear_weight, linear_weight.shape[:1] + linear_weight.shape[-1:])
    biases = (None,) * len(matrices) if linear_bias is None else _separate(linear_bias, (classes,))
    probabilities = target.is_floating_point()
    shape = (rows, classes, len(matrices)) if probabilities else (rows, len(matrices))
    target = target.reshape(shape) if probabilities else target.long().reshape(shape)
    weight = None if weight is None else weight.float()
    nothing: Tensor | None = None
    if reduction != "mean":
        count: Tensor | float = 1.0
    elif probabilities:
        count = float(rows * len(matrices))
    else:
        counted = target != ignored
        nothing = ~counted.any()
        if weight is None:
            count = counted.sum().clamp_min(1)
        else:
            total = weight[target.where(counted, 0)].where(counted, 0).sum()
            # 0 / 0, the mean over targets that all weigh 0, and so are its gradients; the kernel would take a
            # weight of 0 for a row to leave out
            count = total.where(total != 0, math.nan).where(~nothing, 1)
    parts = []
    for matrix, bias, part in zip(matrices, biases, target.unbind(-1), strict=True):
        rows_of = _probability_rows if probabilities else _index_rows
        parts.append(
            rows_of(input, matrix, part, bias, weight, label_smoothing, reduction != "none", count, ignored)
        )
    if reduction == "none":
        return torch.stack(parts, 1)
    loss = torch.stack(parts).sum()
    # as in torch: the mean of nothing is no number, but its gradient is 0
    return loss if nothing is None else torch.where(nothing, loss + math.nan, loss)


def _separate(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return the part of each position. Of a single one it is ``x``, whose gradient is then not copied."""
    parts = (x,) if x.dim() == len(shape) else x.reshape(shape[0], -1, *shape[1:]).unbind(1)
    return tuple(part.reshape(shape) for part in parts)


def _index_rows(
    input: Tensor,
    matrix: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    smoothing: float,
    reduce: bool,
    count: Tensor | float,
    ignored: int,
) -> Tensor:
    """``w_y (lse - s_y)``; smoothed, ``(1 - e) w_y (lse - s_y) + e / C sum_j w_j (lse - s_j)``.

    The latter is ``((1 - e) w_y + e W / C) (lse - s_y) + e / C (W s_y - sum_j w_j s_j)``, W the sum of w.
    """
    classes = matrix.shape[0]
    counted = target != ignored
    known = target.where(counted, 0)
    numbers = target.where(target >= 0, classes)  # in a compiled graph the kernel is the first to look
    row_weight = counted.to(torch.float32)
    if weight is not None:
        row_weight = weight[known].where(counted, 0)
    if smoothing:
        # times the share of each class first: sums over all classes of what is large would overflow
        share = row_weight.new_full((classes,), smoothing / classes)
        share = share if weight is None else share * weight
        everything = smoothing if weight is None else share.sum()
        row_weight = (1 - smoothing) * row_weight + everything * counted.to(torch.float32)
    loss = row_softmax(
        input,
        matrix,
        1.0,
        target=numbers.where(counted, -1),
        bias=bias,
        row_weight=(row_weight / count).where(counted, 0) if reduce else None,
        reduce=reduce,
    )
    if not reduce:
        loss = (row_weight * loss).where(counted, 0)
    if smoothing:
        queries = input.float()
        own = matrix.index_select(
            0, known
        ).float()  # its gradient adds up in one order, unlike matrix[known]'s
        others = product(queries, product(share[None], matrix.float()).mT).squeeze(1)
        level = everything * (queries * own).sum(1) - others
        if bias is not None:
            level = level + everything * bias.index_select(0, known).float() - share @ bias.float()
        rest = level.where(counted, 0)
        loss = loss + (rest.sum() / count if reduce else rest)
    return loss


def _probability_rows(
    input: Tensor,
    matrix: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    smoothing: float,
    reduce: bool,
    count: Tensor | float,
    ignored: int,
) -> Tensor:
    """``sum_j t_j w_j (lse - s_j)``; the products with the targets are one product of matrices."""
    target = target.float()
    if smoothing:
        target = (1 - smoothing) * target + smoothing / matrix.shape[0]
    if weight is not None:
        target = target * weight
    row_weight = target.sum(1)
    nobody = torch.full(target.shape[:1], -1, device=target.device)
    level = (input.float() * product(target, matrix.float())).sum(1)
    if bias is not None:
        level = level + target @ bias.float()
    loss = row_softmax(
        input,
        matrix,
        1.0,
        target=nobody,
        bias=bias,
        row_weight=row_weight / count if reduce else None,
        reduce=reduce,
    )
    return loss - level.sum() / count if reduce else row_weight * loss - level


def _check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    checks.floating("input", input)
    checks.floating("linear_weight", linear_weight)
    if input.dim() < 1:
        raise ThawkitError("input must have shape (..., features), got ()")
    if linear_weight.dim() < 2 or 0 in linear_weight.shape or linear_weight.shape[-1] != input.shape[-1]:
        raise ThawkitError(
            f"linear_weight must have shape (classes, ..., {input.shape[-1]}), the features of input last "
            f"and none of them 0, got {tuple(linear_weight.shape)}"
        )
    checks.same_device("linear_weight", linear_weight, "input", input)
    _check_precision("linear_weight", linear_weight, input)
    if linear_bias is not None:
        _check_part("linear_bias", linear_bias, linear_weight.shape[:-1], input)
        _check_precision("linear_bias", linear_bias, input)


def _check_part(name: str, x: Tensor, shape: tuple[int, ...], input: Tensor) -> None:
    checks.floating(name, x)
    _check_shape(name, x, shape)
    checks.same_device(name, x, "input", input)


def _check_precision(name: str, x: Tensor, input: Tensor) -> None:
    if (x.dtype == torch.float64) != (input.dtype == torch.float64):
        raise ThawkitError(
            f"{name} must be float64 if input is, and only then, got {x.dtype} with {input.dtype}"
        )


def _check_target(target: Tensor, input: Tensor, linear_weight: Tensor, ignored: int) -> None:
    if not isinstance(target, Tensor):
        raise ThawkitError(f"target must be a tensor, got {type(target).__name__}")
    checks.same_device("target", target, "input", input)
    leading, (classes, *positions) = input.shape[:-1], linear_weight.shape[:-1]
    if target.is_floating_point():
        _check_shape("target", target, (*leading, classes, *positions), "of probabilities ")
        if ignored != IGNORED:
            raise ThawkitError(f"ignore_index must be left out with probabilities, got {ignored}")
        return
    if target.dtype not in (torch.int64, torch.uint8):
        raise ThawkitError(f"target must hold int64 classes or floating probabilities, got {target.dtype}")
    _check_shape("target", target, (*leading, *positions), "of classes ")
    if not checks.readable(target):
        return
    counted = target[target.long() != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ThawkitError(
            f"target must hold classes 0 to {classes - 1} or ignore_index={ignored}, "
            f"got {int(counted.min())} to {int(counted.max())}"
        )


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...], what: str = "") -> None:
    if x.shape != shape:
        raise ThawkitError(f"{name} {what}must have shape {tuple(shape)}, got {tuple(x.shape)}")
