"""The pairwise engine's C++ kernels: they pack, multiply and reduce panels that stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.ops._library import cpu_kernels, empty, pointer, takes_only, threads

objection = takes_only("cpu")


_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def as_good_as_zero(scale: Tensor) -> bool:
    """Whether the inverse of ``scale`` overflows."""
    return abs(float(scale.detach())) < _SMALLEST_NORMAL


def _rows(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _floats(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.float32).contiguous()


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
) -> tuple[Tensor, ...]:
    """Losses of the rows, their weighted sum, positive and largest logits (float32), and the gradients."""
    scale_value = float(scale)
    if as_good_as_zero(scale):
        return _flat_info_nce(q, k, row_weight, weight, normalize, need_dq, need_dk, need_dscale)
    q32, k32 = _rows(q), _rows(k)
    (rows, depth), keys = q32.shape, k32.shape[0]
    bias, row_weight = _floats(bias), _floats(row_weight)
    target, row_labels, key_labels = (
        x if x is None else x.contiguous() for x in (target, row_labels, key_labels)
    )
    loss, positive, maximum = (q32.new_empty(rows) for _ in range(3))
    total = q32.new_empty(())
    dq = torch.empty_like(q32) if need_dq else empty(q32)
    dk = torch.empty_like(k32) if need_dk or need_dbias else empty(k32)
    dscale = q32.new_empty(rows) if need_dscale else empty(q32)
    dbias = q32.new_empty(keys) if need_dbias or (need_dscale and bias is not None) else empty(q32)
    if dbias.numel() and not dk.numel():
        dk = torch.empty_like(k32)
    arguments = (
        pointer(q32),
        pointer(k32),
        rows,
        keys,
        depth,
        scale_value,
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
        workspace = q32.new_empty(cpu_kernels().info_nce_workspace(*arguments, 0, threads()))
        cpu_kernels().info_nce(*arguments, pointer(workspace), threads())
    else:
        total.zero_()
        dk.zero_()
        dbias.zero_()
    if need_dscale:
        dscale = dscale.sum()
        if bias is not None:  # it is part of the logits, not of what the scale multiplies
            dscale = dscale - torch.dot(bias, dbias) / scale_value
    return (
        loss,
        total,
        positive,
        maximum,
        dq.to(q.dtype),
        dk.to(k.dtype) if need_dk else empty(k),
        dscale,
        dbias if need_dbias else empty(q32),
    )


def _flat_info_nce(
    q: Tensor,
    k: Tensor,
    row_weight: Tensor | None,
    weight: float,
    normalize: bool,
    need_dq: bool,
    need_dk: bool,
    need_dscale: bool,
) -> tuple[Tensor, ...]:
    """A scale of 0: every softmax is uniform, and only the scale has a gradient."""
    q32, k32 = _rows(q), _rows(k)
    rows, keys = q32.shape[0], k32.shape[0]
    loss = torch.full((rows,), float(keys)).log_()
    if normalize:
        q32, k32 = torch.nn.functional.normalize(q32, dim=1), torch.nn.functional.normalize(k32, dim=1)
    slope = (q32 * (k32.mean(0) - k32[:rows])).sum(1)
    weights = weight if row_weight is None else row_weight.to(torch.float32)
    slope = slope * weights
    return (
        loss,
        (loss * weights).sum(),
        torch.zeros_like(loss),
        torch.zeros_like(loss),
        torch.zeros_like(q, memory_format=torch.contiguous_format) if need_dq else empty(q),
        torch.zeros_like(k, memory_format=torch.contiguous_format) if need_dk else empty(k),
        slope.sum() if need_dscale else empty(q32),
        empty(q32),
    )


def mmd(
    x: Tensor, y: Tensor, gamma: Tensor, relative: bool, doubling: bool, unbiased: bool, need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared MMD (float32 scalar) and its gradients with respect to x and y."""
    x32, y32 = _rows(x), _rows(y)
    (n, depth), m = x32.shape, y32.shape[0]
    gamma = gamma.to(torch.float32).contiguous()
    value = x32.new_empty(())
    dx = torch.empty_like(x32) if need_gradient else empty(x32)
    dy = torch.empty_like(y32) if need_gradient else empty(y32)
    cxx, cyy = (1 / (n * (n - 1)), 1 / (m * (m - 1))) if unbiased else (1 / (n * n), 1 / (m * m))
    arguments = (
        pointer(x32),
        pointer(y32),
        n,
        m,
        depth,
        pointer(gamma),
        gamma.numel(),
        doubling,
        relative,
        cxx,
        cyy,
        -1 / (n * m),
        0.0 if unbiased else gamma.numel() * (1 / n + 1 / m),  # k(u, u) = 1 for each bandwidth
        pointer(value),
        pointer(dx),
        pointer(dy),
    )
    workspace = x32.new_empty(cpu_kernels().mmd_workspace(*arguments, 0, threads()))
    cpu_kernels().mmd(*arguments, pointer(workspace), threads())
    return value, dx.to(x.dtype), dy.to(y.dtype)
