"""A frozen model beside its stock twin."""

from __future__ import annotations

import torch
from torch import nn


def train_alike(stock: nn.Module, frozen: nn.Module) -> None:
    """Let the same parameters train in both."""
    trains = dict(frozen.named_parameters())
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(trains[name].requires_grad)


def assert_gradients_alike(frozen: nn.Module, stock: nn.Module, atol: float) -> None:
    """Compare the gradients of all parameters that train."""
    found = dict(frozen.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=atol, msg=name)
