"""What the tests of the frozen-network operators share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def saved_bytes() -> Callable[[Callable[[], object]], int]:
    """Count the bytes of the storages that autograd saves while a function runs."""

    def saved_bytes(function: Callable[[], object]) -> int:
        saved: dict[int, torch.UntypedStorage] = {}

        def pack(x: Tensor) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            result = function()
        del result
        return sum(storage.nbytes() for storage in saved.values())

    return saved_bytes


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[Tensor, Tensor]]:
    """Value and gradient of a function of one tensor, by a fixed upstream gradient."""

    def run(function: Callable[[Tensor], Tensor], x: Tensor, special: bool = False) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        if special:
            upstream.view(-1)[::7] = torch.inf
            upstream.view(-1)[1::7] = torch.nan
        return y.detach(), torch.autograd.grad(y, leaf, upstream)[0]

    return run


LAYOUTS = ["contiguous", "channels_last", "transposed", "strided", "expanded"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return a tensor of four dimensions, or part of it, in an order of its own."""
    return {
        "contiguous": lambda: x,
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(1, 3),
        "strided": lambda: x[:, ::2, :, 1:],
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
    }[layout]()
