"""What the operator tests share: comparisons against a float64 truth, and poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from thawkit import ops


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Have torch fill uninitialised tensors with NaN, so that an output nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Largest absolute difference over the largest absolute truth."""
    scale = truth.double().abs().max().item() if truth.numel() else 0.0
    worst = (got.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
    return worst if scale == 0 else worst / scale


def values_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return the output of ``function`` and the gradients of a weighted sum of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    out = function(*inputs)
    weight = torch.linspace(0.5, 1.5, max(out.numel(), 1), dtype=out.dtype)[: out.numel()].reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def against_reference(function: Callable[..., Tensor], *inputs: Tensor) -> list[float]:
    """Return the errors of the CPU kernel's values and gradients relative to float64."""
    with ops.use_backend("cpu"):
        got = values_and_gradients(function, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, *(x.double() for x in inputs))
    return [relative_error(a, b) for a, b in zip(got, truth, strict=True)]
