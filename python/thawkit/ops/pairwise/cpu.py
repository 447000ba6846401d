"""The pairwise engine's C++ kernels: they pack, multiply and reduce panels that stay in cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops._library import DTYPES, cpu_kernels, empty, pointer, takes_only, threads
from thawkit.ops.pairwise import gemm

objection = takes_only("cpu")


def _divisor(scale: float) -> float:
    """The scale, or in place of 0 a number that gives the same losses and that the kernels can divide by."""
    usable = abs(scale) >= _SMALLEST_SCALE or math.isnan(scale)
    return scale if usable else math.copysign(_SMALLEST_SCALE, scale)


_SMALLEST_SCALE = 1e-30


def _stored(x: Tensor, storage: torch.dtype, scale: float) -> Tensor:
    """The rows as the kernels take them: their stand-in for 0 times what is infinite would not be NaN."""
    if scale == 0:
        x = x.masked_fill(x.isinf(), math.nan)
    return x.to(storage).contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def kernel_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Return what the kernels take for tensors of ``dtype``, and what their products multiply.

    bfloat16 is multiplied as it is where the CPU can, and float32 is rounded to it under
    ``torch.set_float32_matmul_precision("medium")``, as torch's own products do it. Sums are float32, and
    so are the products of torch's BLAS.
    """
    if not cpu_kernels().cpu_bfloat16() or dtype == torch.float16 or gemm.choose().gemm == "torch":
        return torch.float32, torch.float32
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "medium":
        return torch.float32, torch.float32
    return dtype, torch.bfloat16


def _packed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _floats(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.float32).contiguous()


def check_shapes(
    rows: int,
    keys: int,
    offset: int,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    row_weight: Tensor | None,
) -> None:
    """Require what keeps a kernel within its arguments, as far as shapes tell."""
    if target is None and rows + offset > keys:
        raise ThawkitError(f"k must have at least {rows + offset} rows, as many as positives, got {keys}")
    vectors = (
        ("target", target, rows, torch.int64),
        ("row_labels", row_labels, rows, torch.int32),
        ("key_labels", key_labels, keys, torch.int32),
        ("bias", bias, keys, torch.float32),
        ("row_weight", row_weight, rows, torch.float32),
    )
    for name, x, count, dtype in vectors:
        if x is not None and (x.shape != (count,) or x.dtype != dtype):
            raise ThawkitError(f"{name} must be ({count},) {dtype}, got {tuple(x.shape)} {x.dtype}")


def _check_inside(rows: int, keys: int, offset: int, target: Tensor | None, *others: Tensor | None) -> None:
    """Require the same of values: in a compiled graph nobody has looked at them."""
    check_shapes(rows, keys, offset, target, *others)
    if target is not None and rows and (largest := int(target.max())) >= keys:
        raise ThawkitError(f"target must be below the number of classes, {keys}, got {largest}")


def row_softmax(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    row_labels: Tensor | None,
    key_labels: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    offset: int,
    excluded: int,
    labels: int,
    margin: float,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
    need_dbias: bool,
    need_statistics: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum, positive and largest logits (float32), and the gradients."""
    storage, operand = kernel_dtypes(q.dtype)
    number = float(scale)
    divisor = _divisor(number)
    q_rows, k_rows = _stored(q, storage, number), _stored(k, storage, number)
    (rows, depth), keys = q.shape, k.shape[0]
    bias, row_weight = _floats(bias), _floats(row_weight)
    _check_inside(rows, keys, offset, target, bias, row_labels, key_labels, row_weight)
    target, row_labels, key_labels = _packed(target), _packed(row_labels), _packed(key_labels)
    total = q.new_empty((), dtype=torch.float32)
    loss = total.new_empty(rows)
    positive = torch.empty_like(loss) if need_statistics else None
    maximum = torch.empty_like(loss) if need_statistics else None
    scale_by_rows = need_dscale and bias is not None  # the logits hold the bias: not from them
    dq = torch.empty_like(q_rows) if need_dq or scale_by_rows else None
    dk = torch.empty_like(k_rows) if need_dk or need_dbias else None
    dscale = torch.empty_like(loss) if need_dscale and not scale_by_rows else None
    dbias = total.new_empty(keys) if need_dbias else None
    arguments = (
        pointer(q_rows),
        pointer(k_rows),
        DTYPES[storage],
        gemm.operands(operand),
        rows,
        keys,
        depth,
        divisor,
        normalize,
        pointer(target),
        offset,
        pointer(bias),
        excluded,
        pointer(row_labels),
        pointer(key_labels),
        labels,
        margin,
        pointer(row_weight),
        weight,
        pointer(loss),
        pointer(total),
        pointer(positive),
        pointer(maximum),
        pointer(dq),
        pointer(dk),
        pointer(dbias),
        pointer(dscale),
    )
    if rows:
        workspace = total.new_empty(cpu_kernels().row_softmax_workspace(*arguments, 0, threads()))
        cpu_kernels().row_softmax(*arguments, pointer(workspace), threads())
    else:
        for sum_over_rows in (total, dk, dbias):
            if sum_over_rows is not None:
                sum_over_rows.zero_()
    if scale_by_rows and dq is not None:
        dscale = (q_rows.float() * dq.float()).sum() / divisor
    elif dscale is not None:
        dscale = dscale.sum()
    return (
        loss,
        total,
        positive,
        maximum,
        dq.to(q.dtype) if dq is not None and need_dq else None,
        dk.to(k.dtype) if dk is not None and need_dk else None,
        dscale,
        dbias,
    )


_MMD_KERNELS = {"rbf": 0, "laplace": 1, "imq": 2, "energy": 3, "linear": 4, "poly": 4}  # MMDKernel
MOST_MMD_LAYERS = 8


def mmd(
    samples: list[Tensor],
    rates: list[Tensor],
    weights: Tensor | None,
    same: Tensor | None,
    labels: Tensor | None,
    kernels: list[str],
    numbers: list[float],
    unbiased: bool,
    need_samples: list[bool],
    need_rates: list[bool],
) -> list[Tensor]:
    """Squared MMD (float32 scalar), its gradients by both samples of each layer, and by each one's rates."""
    n, m = samples[0].shape[0], samples[1].shape[0]
    value = samples[0].new_empty((), dtype=torch.float32)
    gradients, rate_gradients, layers, kept = [], [], [], []
    for i, kernel in enumerate(kernels):
        x, y = _rows(samples[2 * i]), _rows(samples[2 * i + 1])
        rate = rates[i].to(torch.float64).contiguous()
        depth = x.shape[1]
        relative, doubling, degree, offset = numbers[4 * i : 4 * i + 4]
        found = [torch.empty_like(z) if need_samples[i] else empty(z) for z in (x, y)]
        drates = torch.empty_like(rate) if need_rates[i] else empty(rate)
        kept.append((x, y, rate))  # until the kernel has run
        gradients += found
        rate_gradients.append(drates)
        layers.append(
            (
                pointer(x),
                pointer(y),
                depth,
                _MMD_KERNELS[kernel],
                pointer(rate),
                rate.numel(),
                bool(doubling),
                bool(relative),
                int(degree),
                1 / max(depth, 1) if kernel == "poly" else 1.0,
                offset,
                pointer(found[0]),
                pointer(found[1]),
                pointer(drates),
            )
        )
    weights, same = _floats(weights), _floats(same)
    labels = None if labels is None else labels.to(torch.int32).contiguous()
    arguments = (
        layers,
        gemm.operands(torch.float32),
        n,
        m,
        pointer(weights),
        1 / n,
        -1 / m,
        pointer(same),
        n / (n - 1) if unbiased and n > 1 else 1.0,
        m / (m - 1) if unbiased and m > 1 else 1.0,
        pointer(labels),
        not unbiased,
        pointer(value),
    )
    workspace = value.new_empty(cpu_kernels().mmd_workspace(*arguments, 0, threads()))
    cpu_kernels().mmd(*arguments, pointer(workspace), threads())
    return [value, *(g.to(z.dtype) for g, z in zip(gradients, samples, strict=True)), *rate_gradients]


def median_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Median of the squared distances of all pairs of rows (float64 scalar)."""
    x32, y32 = _rows(x), _rows(y)
    (n, depth), m = x32.shape, y32.shape[0]
    value = x32.new_zeros((), dtype=torch.float64)
    arguments = pointer(x32), pointer(y32), n, m, depth, pointer(value)
    if n + m > 1:
        workspace = x32.new_empty(cpu_kernels().median_workspace(*arguments, 0, threads()))
        cpu_kernels().median(*arguments, pointer(workspace), threads())
    return value


def pair_loss(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    kind: int,
    offset: int | None,
    normalize: bool,
    need_dx: bool,
    need_dy: bool,
    need_dscale: bool,
    need_dbias: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum (float32), and the gradients of the latter."""
    storage, operand = kernel_dtypes(x.dtype)
    number = float(scale)
    x_rows = _stored(x, storage, number)
    y_rows = None if y is None else _stored(y, storage, number)
    rows, depth = x_rows.shape
    columns = rows if y_rows is None else y_rows.shape[0]
    row_weight = _floats(row_weight)
    total = x.new_zeros((), dtype=torch.float32)
    loss = total.new_empty(rows)
    dx = torch.empty_like(x_rows) if need_dx else None
    dy = torch.empty_like(y_rows) if need_dy and y_rows is not None else None
    dscale = total.new_zeros(()) if need_dscale else None
    dbias = total.new_zeros(()) if need_dbias else None
    arguments = (
        kind,
        pointer(x_rows),
        pointer(y_rows),
        DTYPES[storage],
        gemm.operands(operand),
        rows,
        columns,
        depth,
        _divisor(number),
        0.0 if bias is None else float(bias),
        -rows if offset is None else offset,  # before the first column: no row has a positive
        normalize,
        pointer(row_weight),
        weight,
        pointer(loss),
        pointer(total),
        pointer(dx),
        pointer(dy),
        pointer(dscale),
        pointer(dbias),
    )
    if rows:
        workspace = total.new_empty(cpu_kernels().pairs_workspace(*arguments, 0, threads()))
        cpu_kernels().pairs(*arguments, pointer(workspace), threads())
    elif dy is not None:
        dy.zero_()
    return (
        loss,
        total,
        None if dx is None else dx.to(x.dtype),
        None if dy is None else dy.to(x.dtype),
        dscale,
        dbias,
    )


def permutation_sums(
    z: Tensor, gamma: Tensor, chosen: Tensor, first: int, doubling: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the kernel matrix within and from the chosen rows, and of its rows (float64)."""
    z32, chosen = _rows(z), chosen.contiguous()
    (rows, depth), permutations = z32.shape, chosen.shape[1]
    gamma = gamma.to(torch.float32).contiguous()
    within = z32.new_zeros(permutations, dtype=torch.float64)
    from_chosen, sums = torch.zeros_like(within), within.new_zeros(rows, 2)
    arguments = (
        pointer(z32),
        rows,
        depth,
        first,
        pointer(gamma),
        gamma.numel(),
        doubling,
        pointer(chosen),
        permutations,
        pointer(within),
        pointer(from_chosen),
        pointer(sums),
    )
    if rows:
        workspace = z32.new_empty(cpu_kernels().permutation_workspace(*arguments, 0, threads()))
        cpu_kernels().permutation_sums(*arguments, pointer(workspace), threads())
    return within, from_chosen, sums


def subsets(rows: int, chosen: int, permutations: int, seed: int, first: int) -> Tensor:
    """Random subsets of rows, (rows, permutations) uint8."""
    membership = torch.empty(rows, permutations, dtype=torch.uint8, device="cpu")
    order = torch.empty(threads(), rows, dtype=torch.int32, device="cpu")
    cpu_kernels().subsets(
        pointer(membership), rows, chosen, permutations, first, seed, pointer(order), threads()
    )
    return membership


_SIMILARITIES = {"dot": 0, "cosine": 1, "euclidean": 2}  # the compiled kernels' Similarity


def top_k(
    queries: Tensor, gallery: Tensor, k: int, similarity: str, excluded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k largest similarities of each query (float32) and their indices (int64)."""
    q32, g32 = _rows(queries), _rows(gallery)
    (rows, depth), keys = q32.shape, g32.shape[0]
    values, indices = q32.new_empty(rows, k), q32.new_empty(rows, k, dtype=torch.int64)
    if excluded is not None:
        excluded = excluded.contiguous()
    arguments = (
        pointer(q32),
        pointer(g32),
        rows,
        keys,
        depth,
        k,
        _SIMILARITIES[similarity],
        pointer(excluded),
        pointer(values),
        pointer(indices),
    )
    if rows:
        workspace = q32.new_empty(cpu_kernels().top_k_workspace(*arguments, 0, threads()))
        cpu_kernels().top_k(*arguments, pointer(workspace), threads())
    return values, indices


def margin_loss(
    x: Tensor,
    y: Tensor | None,
    margin: Tensor,
    negative_margin: Tensor | None,
    labels: Tensor,
    y_labels: Tensor | None,
    row_weight: Tensor | None,
    weight: float,
    kind: int,
    distance: int,
    mean: int,
    need_dx: bool,
    need_dy: bool,
    need_dmargins: bool,
) -> tuple[Tensor | None, ...]:
    """Losses of the rows, their weighted sum or mean (float32), and the gradients of the latter."""
    x_rows, y_rows, row_weight = _rows(x), _floats(y), _floats(row_weight)
    (rows, depth), columns = x_rows.shape, x_rows.shape[0] if y_rows is None else y_rows.shape[0]
    by_class, order = (labels if y_labels is None else y_labels).to(torch.int64).sort(stable=True)
    row_labels = by_class if y_labels is None else labels.to(torch.int64).contiguous()
    first = torch.searchsorted(by_class, row_labels)
    last = torch.searchsorted(by_class, row_labels, right=True)
    total = x.new_zeros((), dtype=torch.float32)
    loss, dmargins = total.new_zeros(rows), total.new_zeros(2)
    dx = torch.zeros_like(x_rows) if need_dx else None
    dy = torch.zeros_like(y_rows) if need_dy and y_rows is not None else None
    arguments = (
        kind,
        distance == 1,
        y is None,
        pointer(x_rows),
        pointer(y_rows),
        rows,
        columns,
        depth,
        pointer(order),
        pointer(first),
        pointer(last),
        float(margin),
        0.0 if negative_margin is None else float(negative_margin),
        pointer(row_weight),
        weight,
        mean,
        pointer(loss),
        pointer(total),
        pointer(dx),
        pointer(dy),
        pointer(dmargins),
    )
    if rows and columns:
        workspace = total.new_empty(cpu_kernels().margin_workspace(*arguments, 0, threads()))
        cpu_kernels().margin(*arguments, pointer(workspace), threads())
    return (
        loss,
        total,
        None if dx is None else dx.to(x.dtype),
        None if dy is None or y is None else dy.to(y.dtype),
        dmargins if need_dmargins else None,
    )
