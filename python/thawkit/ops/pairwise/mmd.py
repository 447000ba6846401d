"""Squared MMD of two samples, without the matrix of pairs: schema, checks, gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops._library import apart, define, empty, scaled
from thawkit.ops.dispatch import choose, heeding_memory, memory
from thawkit.ops.pairwise import cpu, cuda_mmd, reference, triton_mmd
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.reference.kernels import Kernel
from thawkit.ops.pairwise.reference.mmd import Sample, Weights

KERNELS = {"cpu": cpu, "cuda": cuda_mmd, "triton": triton_mmd}
OBJECTIONS = {name: module.objection for name, module in KERNELS.items()}


def mmd(layers: Sequence[Sample], weights: Weights | None = None, *, unbiased: bool = False) -> Tensor:
    """Squared MMD of samples that one or several layers see, whose kernels multiply.

    Args:
        layers: what each sees of both samples, with its kernel.
        weights: what pairs count; None is the mean over each block of pairs.
        unbiased: without weights, the U-statistic (Gretton et al. 2012, eq. 3) instead of the V-statistic
            (eq. 5). With weights, ``weights.same`` says so.

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, or a sample is too small.
    """
    _check(layers, unbiased or (weights is not None and weights.same is not None))
    samples = [sample for layer in layers for sample in (layer.x, layer.y)]
    backend = choose("mmd", {} if _unusual(layers, weights) else OBJECTIONS, *samples)
    if backend == "reference":
        return definition(layers, weights, unbiased)
    rates = [layer.x.new_empty(0) if layer.rates is None else layer.rates for layer in layers]
    if not torch.is_grad_enabled():
        samples, rates = [x.detach() for x in samples], [q.detach() for q in rates]
    kernels = [layer.kernel for layer in layers]
    names = [k.name for k in kernels]
    numbers = [float(n) for k in kernels for n in (k.relative, k.doubling, k.degree, k.offset)]
    pair = same = labels = None
    if weights is not None:
        pair = torch.cat((weights.x, weights.y))
        same = None if weights.same is None else torch.cat(weights.same)
        labels = None if weights.labels is None else torch.cat(weights.labels)
        unbiased = same is not None
    value: Tensor = _MMD.apply(
        backend, memory(), names, numbers, unbiased, pair, same, labels, *samples, *rates
    )
    return value


def _unusual(layers: Sequence[Sample], weights: Weights | None) -> bool:
    """Whether the kernel cannot take what is not about devices and dtypes."""
    if len(layers) > cpu.MOST_MMD_LAYERS:
        return True
    return (
        weights is not None
        and torch.is_grad_enabled()
        and (weights.x.requires_grad or weights.y.requires_grad)
    )


def _check(layers: Sequence[Sample], unbiased: bool) -> None:
    least = 2 if unbiased else 1
    for i, layer in enumerate(layers):
        x, y = ("x", "y") if len(layers) == 1 else (f"x[{i}]", f"y[{i}]")
        checks.row_pair(x, layer.x, y, layer.y)
        for name, sample, first in ((x, layer.x, layers[0].x), (y, layer.y, layers[0].y)):
            if sample.shape[0] < least:
                raise ThawkitError(f"{name} must have at least {least} rows, got {sample.shape[0]}")
            if sample.shape[0] != first.shape[0] or sample.dtype != first.dtype:
                raise ThawkitError(
                    f"{name} must have {first.shape[0]} rows of {first.dtype} as the first layer has, "
                    f"got {sample.shape[0]} of {sample.dtype}"
                )


def definition(layers: Sequence[Sample], weights: Weights | None, unbiased: bool) -> Tensor:
    """The reference, in float32 for half precision."""
    x, y = layers[0].x, layers[0].y
    with full_precision(x):
        layers = [sample._replace(x=lifted(sample.x), y=lifted(sample.y)) for sample in layers]
        return reference.mmd(layers, uniform(x, y, unbiased) if weights is None else weights)


def uniform(x: Tensor, y: Tensor, unbiased: bool) -> Weights:
    """Return the weights of the mean over each block of pairs."""
    n, m = x.shape[0], y.shape[0]
    of_x, of_y = (
        torch.full((count,), value, dtype=lifted(x).dtype, device=x.device)
        for count, value in ((n, 1 / n), (m, -1 / m))
    )
    if not unbiased:
        return Weights(of_x, of_y)
    return Weights(of_x, of_y, (torch.full_like(of_x, n / (n - 1)), torch.full_like(of_y, m / (m - 1))))


def _fake(
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
    backend: str,
    memory: str,
) -> list[Tensor]:
    x = samples[0]
    gradients = [z.new_empty(z.shape) if need_samples[i // 2] else empty(z) for i, z in enumerate(samples)]
    of_rates = [
        q.new_empty(q.shape if needed else 0, dtype=torch.float64)
        for q, needed in zip(rates, need_rates, strict=True)
    ]
    return [x.new_empty((), dtype=torch.float32), *gradients, *of_rates]


_mmd_op = define(
    "mmd(Tensor[] samples, Tensor[] rates, Tensor? weights, Tensor? same, Tensor? labels, str[] kernels, "
    "float[] numbers, bool unbiased, bool[] need_samples, bool[] need_rates, str backend, "
    "str memory) -> Tensor[]",
    heeding_memory(lambda *arguments: KERNELS[arguments[-1]].mmd(*arguments[:-1])),
    _fake,
)


class _MMD(torch.autograd.Function):
    """Of x and y of each layer and the rates of each."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        memory: str,
        names: list[str],
        numbers: list[float],
        unbiased: bool,
        weights: Tensor | None,
        same: Tensor | None,
        labels: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        count = len(names)
        samples, rates = list(tensors[: 2 * count]), list(tensors[2 * count :])
        need = ctx.needs_input_grad[8:]
        need_samples = [need[2 * i] or need[2 * i + 1] for i in range(count)]
        need_rates = [need[2 * count + i] for i in range(count)]
        value, *gradients = _mmd_op(
            samples, rates, weights, same, labels, names, numbers, unbiased, need_samples, need_rates,
            backend, memory,
        )  # fmt: skip
        ctx.save_for_backward(weights, same, labels, *tensors, *gradients)
        ctx.options = names, numbers, unbiased
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        names, numbers, unbiased = ctx.options
        need = ctx.needs_input_grad[8:]
        weights, same, labels, *saved = ctx.saved_tensors  # once: checkpointing hands them out only once
        tensors, gradients = saved[: 3 * len(names)], saved[3 * len(names) :]
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            found = scaled(gradients, g, need)
            as_given = [None if d is None else d.to(t.dtype) for d, t in zip(found, tensors, strict=True)]
            return *[None] * 8, *as_given
        tensors = apart(*tensors)
        layers = _layers(names, numbers, tensors)
        value = definition(layers, _weights(layers[0].x.shape[0], weights, same, labels), unbiased)
        wanted = [t for t, needed in zip(tensors, need, strict=True) if needed]
        exact = iter(torch.autograd.grad(value, wanted, g, create_graph=True))
        return *[None] * 8, *(next(exact) if needed else None for needed in need)


def _layers(names: list[str], numbers: list[float], tensors: Sequence[Tensor]) -> list[Sample]:
    layers = []
    for i, name in enumerate(names):
        relative, doubling, degree, offset = numbers[4 * i : 4 * i + 4]
        kernel = Kernel(name, bool(relative), bool(doubling), int(degree), offset)
        rates = tensors[2 * len(names) + i]
        x, y = tensors[2 * i], tensors[2 * i + 1]
        layers.append(Sample(x, y, kernel, rates if rates.numel() else None))
    return layers


def _weights(n: int, weights: Tensor | None, same: Tensor | None, labels: Tensor | None) -> Weights | None:
    if weights is None:
        return None
    of_x, of_y = (None if pair is None else (pair[:n], pair[n:]) for pair in (same, labels))
    return Weights(weights[:n], weights[n:], of_x, of_y)
